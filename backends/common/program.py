"""What every backend is given: the circuits to lower, and what is known of how they will run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from tapeout.backends.common.numerics import Numerics
from tapeout.ir import Circuit, GeneralFunction, Symbol, postorder


@dataclass(frozen=True, slots=True)
class Program:
    """Circuits to lower.

    Attributes:
        roots: without modules and random variables; their free symbols must be among the inputs.
        inputs: symbols, in the order of the arguments. A symbolic size that occurs in them is read off at run time.
        origins: names for nodes.
        dtype: what floating values are computed in; for a narrow one see `tapeout.backends.common.precision`.
        device: where it runs.
        rows: a typical batch size; None if nobody says.
        numerics: how products are computed.
        order: every node below the roots, children before parents; None for `postorder`.
    """

    roots: Sequence[Circuit]
    inputs: Sequence[Symbol] = ()
    origins: Mapping[Circuit, str] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (immutable)
    rows: int | None = None
    order: Sequence[Circuit] | None = None
    numerics: Numerics = Numerics()  # noqa: RUF009 (immutable)

    @property
    def nodes(self) -> Iterable[Circuit]:
        """Every node below the roots, in the order of evaluation."""
        return self.order or postorder(*self.roots)

    def name_of(self, node: Circuit) -> str:
        """What a node is called: after what it stands for in the circuit, else after its kind or function."""
        kind = type(node.spec).__name__ if isinstance(node, GeneralFunction) else node.kind
        return self.origins.get(node) or kind.lower()
