"""Pieces of an optimised circuit, compiled apart: each makes one node of another.

A piece is called with rows. In a sweep a row is a variant on a prompt: whatever is the same for all
variants of a prompt is looked up in that prompt's values, so that it is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from tapeout.backends.common.executable import Executable
from tapeout.backends.common.numerics import Numerics
from tapeout.backends.common.program import Program
from tapeout.compiler.backends import builder
from tapeout.compiler.cost import Cost, size_of
from tapeout.ir import Circuit, Symbol
from tapeout.ir.sizes import UNKNOWN, SymbolicSize
from tapeout.tasks.patching.sweeps.cuts import Anatomy
from tapeout.tasks.patching.sweeps.subgraphs import PAST, Graph, Values, Window, between, windowed


class Part:
    """A part of the circuit to call, lowered when it is first called; it counts what it does.

    Args:
        pieces: what it belongs to.
        roots: its results.
        inputs: its arguments.
    """

    def __init__(self, pieces: Pieces, roots: Sequence[Circuit], inputs: Sequence[Symbol]) -> None:
        self.pieces, self.roots, self.inputs = pieces, tuple(roots), tuple(inputs)
        self._executable: Executable | None = None
        self._flops: dict[tuple[tuple[str, int], ...], int] = {}

    def __call__(self, *values: torch.Tensor) -> Any:
        """The roots' values: one tensor, or a tuple of them. On the device "meta" only their shapes."""
        sizes = self._sizes(values)
        key = tuple(sorted(sizes.items()))
        if key not in self._flops:
            self._flops[key] = Cost.of(self.roots, sizes, self.pieces.dtype).flops
        self.pieces.flops += self._flops[key]
        self.pieces.calls += 1
        if self.pieces.is_dry:
            out = tuple(self._empty(root, sizes) for root in self.roots)
            return out if len(out) > 1 else out[0]
        if self._executable is None:
            build = builder(self.pieces.backend)
            origins, dtype, device = self.pieces.anatomy.origins, self.pieces.dtype, self.pieces.device
            numerics = self.pieces.numerics
            program = Program(self.roots, self.inputs, origins, dtype, device, numerics=numerics)
            self._executable, _ = build(program)
        return self._executable(*values)

    def _sizes(self, values: Sequence[torch.Tensor]) -> dict[str, int]:
        """What the symbolic sizes are in a call; what is joined of past and window has all positions."""
        sizes = {UNKNOWN.dims[0]: self.pieces.anatomy.length}
        for symbol, value in zip(self.inputs, values, strict=True):
            for size, found in zip(symbol.shape, value.shape, strict=True):
                if isinstance(size, SymbolicSize):
                    sizes[size.dims[0]] = found
        return sizes

    def _empty(self, root: Circuit, sizes: Mapping[str, int]) -> torch.Tensor:
        dtype = root.torch_dtype
        kind = dtype if dtype is not None and not dtype.is_floating_point else self.pieces.dtype
        return torch.empty([size_of(size, sizes) for size in root.shape], dtype=kind, device="meta")


class Pieces:
    """The parts of one circuit that a sweep calls, each made when it is first wanted.

    Args:
        anatomy: the circuit.
        backend, dtype, device: see `compile`; on the device "meta" nothing is computed.
        numerics: how products are computed.

    Attributes:
        flops: the floating-point operations of all calls so far, by the count of `Cost`.
        calls: how many calls there were.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        backend: str,
        dtype: torch.dtype,
        device: torch.device,
        numerics: Numerics = Numerics(),  # noqa: B008
    ) -> None:
        self.anatomy, self.backend, self.dtype, self.device = anatomy, backend, dtype, device
        self.numerics = numerics
        self.flops = self.calls = 0
        self._made: dict[object, Any] = {}

    @property
    def is_dry(self) -> bool:
        return self.device.type == "meta"

    def made(self, key: object, make: Callable[[], Any]) -> Any:
        """What is known under a key, made when it is first asked for."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def part(self, roots: Sequence[Circuit], inputs: Sequence[Symbol]) -> Part:
        """A part of the circuit to call; `inputs` stand for nodes that are given."""
        return Part(self, roots, inputs)

    def constant(self, node: Circuit) -> torch.Tensor:
        """The value of a node that depends on no input."""
        return self.made(node, lambda: node.evaluate(self.dtype).to(self.device))  # type: ignore[no-any-return]

    def between(self, start: Circuit, end: Circuit) -> Piece:
        """The piece that makes one node of another."""
        return self.made((start, end), lambda: Piece(self, start, end))  # type: ignore[no-any-return]


class Piece:
    """What makes one node of another, over all positions or a window of them."""

    def __init__(self, pieces: Pieces, start: Circuit, end: Circuit) -> None:
        self.pieces, self.start, self.end = pieces, start, end
        self._graphs: dict[bool, Graph] = {}
        self._parts: dict[bool, Part] = {}

    def graph(self, whole: bool) -> Graph:
        """The graph over all positions, or over a window.

        Raises:
            UnsupportedError: if it cannot be computed for a window of positions.
        """
        if whole not in self._graphs:
            length, constant = self.pieces.anatomy.length, self.pieces.constant
            ends = self.start, self.end
            self._graphs[whole] = between(*ends) if whole else windowed(*ends, length, constant)
        return self._graphs[whole]

    def positions_of(self, window: Window) -> float:
        """How many positions a row takes: those of the window, and half of the earlier ones where these are read."""
        past = any(PAST in source.symbol.shape for source in self.graph(self._is_whole(window)).sources)
        return (window.stop - window.start if _has_positions(self.start) else 1) + past * window.start / 2

    def _is_whole(self, window: Window) -> bool:
        return window.is_all or not _has_positions(self.start)

    def __call__(self, x: torch.Tensor, values: Values, prompts: torch.Tensor, window: Window) -> torch.Tensor:
        """The end's value [ROWS, ...] of the start's [ROWS, ...].

        Args:
            x: the start's value in the window.
            values: the prompts' values.
            prompts: the prompt of each row. If x has more rows, so many go at a time, of the same prompts each time:
                what is looked up for them is looked up once.
            window: the positions of x.
        """
        whole = self._is_whole(window)
        graph = self.graph(whole)
        if whole not in self._parts:
            inputs = [graph.x, *(source.symbol for source in graph.sources)]
            self._parts[whole] = self.pieces.part(graph.roots, inputs)
        given = [source.fetch(values, prompts, window) for source in graph.sources]
        out = list[torch.Tensor]()
        for some in x.split(max(1, len(prompts))):
            if len(some) < len(prompts):
                rows = len(some)
                given = [
                    value if source.node is None else value[:rows]
                    for source, value in zip(graph.sources, given, strict=True)
                ]
            out.append(self._parts[whole](some, *given))
        return torch.cat(out) if len(out) > 1 else out[0]


def _has_positions(node: Circuit) -> bool:
    return node.rank == 3
