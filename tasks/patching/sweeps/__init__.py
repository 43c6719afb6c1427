"""Sweeps: many variants of a model evaluated together. docs/sweeps.md says how.

variants (what is varied) -> anatomy (the model's cuts), checks, plan -> changes (what a variant changes at its cut, of
the parts in jobs and heads) -> passage (rows through pieces, windows in graphs) -> result. cluster: on many machines;
edits: what has no name.
"""
