"""Sweeps: many variants of a model evaluated together. docs/sweeps.md says how.

variants (what is varied) -> cuts (where the model's stream can be cut), checks, plan -> changes (what a variant changes
at its cut, of the parts in groups and heads) -> forward (rows through compiled subgraphs, windows in subgraphs) ->
result. cluster: on many machines; edits: what has no name.
"""
