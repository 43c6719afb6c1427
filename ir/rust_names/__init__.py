"""What only users of rust_circuit ask for: names of theirs that nothing else here uses."""
