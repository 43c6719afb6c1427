"""The methods of circuits and matchers that need what lies above these: `circuit.update(...)`, `.print()`, `.sum()`."""
