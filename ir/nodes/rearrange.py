"""`Rearrange`: transpose, reshape, repeat and squeeze, in einops' notation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from tapeout.ir.axis_index import FULL
from tapeout.ir.batching import gained
from tapeout.ir.circuit import _AUTONAME, OPERATORS, Circuit, auto_name
from tapeout.ir.errors import ShapeError
from tapeout.ir.index_rules import AxisIndices, Pushed
from tapeout.ir.nodes.rearrange_spec import RearrangeSpec as RearrangeSpec
from tapeout.ir.nodes.rearrange_spec import common_factors, entry_of_group, spec_text
from tapeout.ir.sizes import Shape, SizeIn, SizeMismatch, SymbolicSize, Unifier, as_shape, format_shape, multiply


class Rearrange(Circuit):
    """Transposes, splits, merges, repeats and squeezes axes.

    Args:
        node: what is rearranged.
        spec: which axes go where.
        name: the node's name.

    Raises:
        ShapeError: if the node's shape does not fit the spec.
    """

    __slots__ = ()

    def __new__(cls, node: Circuit, spec: RearrangeSpec, name: str | None = _AUTONAME) -> Rearrange:
        return cls._make((spec,), (node,), auto_name(name, [node], "{} rearrange", bracketed=OPERATORS))

    @staticmethod
    def from_string(node: Circuit, string: str, name: str | None = _AUTONAME) -> Rearrange:
        """Written in einops' notation: `"s (h:12 d) -> h s d"`."""
        return Rearrange(node, RearrangeSpec.from_string(string), name)

    @staticmethod
    def reshape(node: Circuit, shape: Iterable[SizeIn], name: str | None = _AUTONAME) -> Rearrange:
        """A reshape in row-major order: one node, or two where the shapes have no common factors.

        Raises:
            ShapeError: if the number of elements differs.
        """
        target = as_shape(shape)
        if multiply(target) != node.numel:
            raise ShapeError(
                f"cannot reshape {node!r} to {format_shape(target)}: {node.numel} elements against {multiply(target)}",
                hint="the product of the sizes must stay the same",
            )
        spec = common_factors(node.shape, target)
        return node.flatten().unflatten(target, name) if spec is None else Rearrange(node, spec, name)

    @property
    def node(self) -> Circuit:
        return self.children[0]

    @property
    def spec(self) -> RearrangeSpec:
        return self.attributes[0]  # type: ignore[no-any-return]

    def with_sizes(self, learnt: Unifier) -> Circuit:
        spec = self.spec
        if not any(isinstance(size, SymbolicSize) for size in spec.int_sizes):
            return self
        sizes = tuple(None if size is None else learnt.resolve(size) for size in spec.int_sizes)
        return self._make((replace(spec, int_sizes=sizes),), self.children, self.op_name)

    def _infer(self) -> tuple[Shape, torch.dtype | None]:
        (child,), spec = self.children, self.spec
        inputs = {number for group in spec.input_ints for number in group}
        outputs = {number for group in spec.output_ints for number in group}
        lost = [number for number in inputs - outputs if spec.int_sizes[number] not in (1, None)]
        try:
            if spec.has_repeats():
                raise SizeMismatch
            sizes = spec.sizes(child.shape)
        except SizeMismatch:
            raise ShapeError(
                f"Rearrange {self.name!r} ({spec}) does not fit {child!r} of shape {format_shape(child.shape)}",
                hint="each axis must be the product of its parts, with at most one part of unknown size; "
                "give sizes as 'h:12'",
            ) from None
        lost += [number for number in inputs - outputs if sizes[number] != 1]
        if lost:
            raise ShapeError(
                f"Rearrange {self.name!r} ({spec}) drops an axis of {child!r} that is not of size 1",
                hint="sum over an axis with Einsum, or take one entry with Index",
            )
        return tuple(multiply(sizes[number] for number in group) for group in spec.output_ints), child.torch_dtype

    def _expand(self, children: tuple[Circuit, ...]) -> Circuit:
        (count,) = gained(self, children).ranks
        return self._make((self.spec.batched(count),), children, self.op_name)

    def push_index(self, index: AxisIndices) -> Pushed:
        """Along axes that are neither split nor merged: permuted, repeated (nothing is read), of size 1."""
        taken = tuple(
            entry if self.spec.takes_index(group, entry) else FULL
            for group, entry in zip(self.spec.output_ints, index, strict=True)
        )
        groups = zip(self.spec.output_ints, taken, strict=True)
        entries = {group[0]: entry for group, entry in groups if len(group) == 1}
        reads = ((self.node, tuple(entry_of_group(group, entries) for group in self.spec.input_ints)),)
        small = self.spec.indexed(taken, entries)

        def build(children: tuple[Circuit, ...]) -> Circuit:
            return children[0] if small.is_identity() else self._make((small,), children, self.op_name)

        return Pushed(taken, reads, build)

    def _text(self) -> str:
        return spec_text(self.spec)


def arranged(node: Circuit, have: Sequence[int | None], want: Sequence[int | None]) -> Circuit:
    """The node without a name, from axes called `have` to the order `want`; see `RearrangeSpec.between`."""
    return node if tuple(have) == tuple(want) else Rearrange(node, RearrangeSpec.between(have, want), name=None)


def apply_rearrange(tensor: torch.Tensor, spec: RearrangeSpec) -> torch.Tensor:
    """The tensor rearranged; a view where it can be."""
    steps: Any = spec.steps(tuple(tensor.shape))  # of numbers, as the tensor's shape is
    out = tensor.reshape(steps.split).permute(steps.order)
    for axis in steps.new:
        out = out.unsqueeze(axis)
    return out.expand(steps.full).reshape(steps.out)
