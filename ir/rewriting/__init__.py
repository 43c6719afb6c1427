"""Circuits made from circuits: updates, expanders, casts, new bindings."""
