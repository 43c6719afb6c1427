"""From a circuit to something callable."""

from tapeout.compiler.artefact import load
from tapeout.compiler.bisect import bisect
from tapeout.compiler.certificate import verify
from tapeout.compiler.compare import compare
from tapeout.compiler.compile import compile, compile_many
from tapeout.compiler.compiled import Compiled
from tapeout.compiler.cost import Cost
from tapeout.compiler.export import export
from tapeout.compiler.values import evaluate_many, values

__all__ = [
    "Compiled", "Cost", "bisect", "compare", "compile", "compile_many", "evaluate_many", "export", "load", "values",
    "verify",
]  # fmt: skip
