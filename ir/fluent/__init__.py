"""The methods of `Circuit` that need what lies above it: `circuit.update(...)`, `.print()`, `.sum()`."""
