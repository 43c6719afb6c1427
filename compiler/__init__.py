"""From a circuit to something callable."""

from tapeout.compiler.artefacts.artefact import load
from tapeout.compiler.artefacts.certificate import verify
from tapeout.compiler.artefacts.export import export
from tapeout.compiler.checks.bisect import bisect
from tapeout.compiler.checks.compare import compare
from tapeout.compiler.compile import compile, compile_many
from tapeout.compiler.compiled import Compiled
from tapeout.compiler.cost import Cost
from tapeout.compiler.values import evaluate_many, values

__all__ = [
    "Compiled", "Cost", "bisect", "compare", "compile", "compile_many", "evaluate_many", "export", "load", "values",
    "verify",
]  # fmt: skip
