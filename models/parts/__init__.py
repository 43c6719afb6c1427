"""The parts of a split model: what they are called, and where they are in a circuit."""
