"""Backends: from a circuit to values or to something callable. One folder each."""
