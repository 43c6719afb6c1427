"""The reference backend, the meaning of circuits: eager torch, one rule a kind, never optimised."""

from tapeout.backends.reference.evaluate import evaluate, evaluate_many

__all__ = ["evaluate", "evaluate_many"]
