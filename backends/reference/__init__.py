"""The reference backend: what a circuit means. Eager torch, one rule a kind, float64 on request, never optimised."""

from tapeout.backends.reference.evaluate import evaluate, evaluate_many

__all__ = ["evaluate", "evaluate_many"]
