"""The constants that a lowered circuit reads: views of the arrays' memory, and copies where no view will do."""

from __future__ import annotations

from collections.abc import Container, Hashable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from tapeout.ir import Array, Circuit, GeneralFunction, Index, Rearrange
from tapeout.ir.axis_index import Picks, apply_index
from tapeout.ir.errors import LoweringError
from tapeout.ir.nodes.einsum import Axes
from tapeout.ir.nodes.kernels import Linear
from tapeout.ir.nodes.rearrange import apply_rearrange
from tapeout.ir.sizes import is_concrete


def unused(base: str, taken: Container[str]) -> str:
    """The name, with a number behind it if it is taken."""
    chosen, number = base, 1
    while chosen in taken:
        number += 1
        chosen = f"{base}_{number}"
    return chosen


class Weights:
    """The constants that a graph reads, moved to one dtype and device, each held once.

    Args:
        dtype: floating constants are cast to it.
        device: where constants are moved.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self.packed_bytes = 0
        self._moved: dict[tuple[Any, ...], torch.Tensor] = {}
        self._copies: dict[Circuit, torch.Tensor] = {}
        self._moved_storages: set[int] = set()

    def value(self, node: Circuit) -> torch.Tensor | None:
        """The tensor of a constant seen through Index and Rearrange; None if the node is something else.

        What is no view of its array's memory is something else and computed at each call, such as picked rows. So
        is a constant that is repeated along the batch: how often is known at run time.
        """
        array = _array_below(node)
        return _seen(node, self._move(array.value)) if array is not None and is_view(node) else None

    def copied(self, node: Circuit) -> torch.Tensor | None:
        """As `value`, but a tensor that is no view is copied and held; copies are counted."""
        array = _array_below(node)
        if array is None:
            return None
        if node not in self._copies:
            value = self._copies[node] = _seen(node, self._move(array.value))
            if not _same_memory(value, self._move(array.value)):
                self.packed_bytes += value.numel() * value.element_size()
        return self._copies[node]

    def pack(self, value: torch.Tensor, shape: list[int]) -> torch.Tensor:
        """The tensor reshaped: a view if it can be, else a copy, which is counted."""
        out = value.reshape(shape)
        if not _same_memory(out, value):
            self.packed_bytes += out.numel() * out.element_size()
        return out

    def _move(self, value: torch.Tensor) -> torch.Tensor:
        target = self.dtype if value.is_floating_point() else value.dtype
        if value.dtype is target and value.device == self.device:
            return value
        key = place_of(value)
        if key not in self._moved:
            moved = self._moved[key] = value.to(device=self.device, dtype=target)
            self._moved_storages.add(_storage(moved))
        return self._moved[key]

    def is_copy(self, value: torch.Tensor) -> bool:
        """Whether the tensor lies in memory that a constant was copied to, because of its dtype or device."""
        return _storage(value) in self._moved_storages

    def let_go(self) -> None:
        """Forgets what was copied, so that memory which nothing else reads can be freed; nothing is added after it."""
        self._moved.clear()
        self._copies.clear()


@dataclass(frozen=True, slots=True)
class Matrices:
    """A product with a weight as one of two matrices.

    Attributes:
        rows: the axes of x that stay.
        shared: the contracted axes, in the order in which they lie in the weight's memory: merging them is a view.
        columns: the axes that come from the weight.
        inner: the size of the contracted axes together.
        widths: the sizes of the columns.
        matrix: the weight [columns, shared].
        shift: the bias [columns], or None.
    """

    rows: list[int]
    shared: list[int]
    columns: list[int]
    inner: int
    widths: list[int]
    matrix: torch.Tensor
    shift: torch.Tensor | None

    @staticmethod
    def of(weights: Weights, node: GeneralFunction) -> Matrices:
        """What a `Linear` multiplies.

        Raises:
            LoweringError: if weight or bias is no constant.
        """
        spec = node.spec
        if not isinstance(spec, Linear):
            raise LoweringError(f"{node!r} is no product with a weight", hint="report it")
        weight, *bias = (_constant(weights, child) for child in node.children[1:])
        strides = dict(zip(spec.weight_axes, weight.stride(), strict=True))
        sizes = dict(zip(spec.weight_axes, weight.shape, strict=True))
        shared = sorted((axis for axis in spec.x_axes if axis in sizes), key=lambda axis: -strides[axis])
        columns = [axis for axis in spec.out_axes if axis in sizes]
        inner, widths = prod(sizes[axis] for axis in shared), [sizes[axis] for axis in columns]
        matrix = _permuted(weight, spec.weight_axes, [*columns, *shared])
        shift = None
        if bias and spec.bias_axes is not None:
            own = [axis for axis in columns if axis in spec.bias_axes]
            shift = _permuted(bias[0], spec.bias_axes, own)
            shift = shift.reshape([sizes[axis] if axis in own else 1 for axis in columns])
            shift = weights.pack(shift.expand(widths), [prod(widths)])
        return Matrices(
            [axis for axis in spec.x_axes if axis not in sizes],
            shared,
            columns,
            inner,
            widths,
            weights.pack(matrix, [prod(widths), inner]),
            shift,
        )


def is_view(node: Circuit) -> bool:
    """Whether the node is a constant, or a view of its memory through Index and Rearrange."""
    array = _array_below(node)
    if array is None or any(isinstance(each, Index) and _picks(each) for each in _chain(node)):
        return False
    return _same_memory(_seen(node, array.value), array.value)


def place_of(value: torch.Tensor) -> tuple[Hashable, ...]:
    """What two tensors share that are one view of one memory, while one of them lives."""
    return (_storage(value), value.storage_offset(), tuple(value.shape), value.stride(), value.dtype)


def _storage(value: torch.Tensor) -> int:
    """What tells memories apart; its address would not tell those of fake tensors."""
    return int(value.untyped_storage()._cdata)


def _seen(node: Circuit, value: torch.Tensor) -> torch.Tensor:
    """What a node sees of an array's value."""
    for each in reversed(_chain(node)):
        value = apply_index(value, each.axis_indices) if isinstance(each, Index) else apply_rearrange(value, each.spec)
    return value


def _permuted(value: torch.Tensor, have: Axes, want: list[int]) -> torch.Tensor:
    return value.permute([have.index(axis) for axis in want])


def _constant(weights: Weights, node: Circuit) -> torch.Tensor:
    value = weights.copied(node)
    if value is None:
        raise LoweringError(f"the weight {node!r} is no constant", hint="kernels take constants as weights")
    return value


def _chain(node: Circuit) -> list[Index | Rearrange]:
    """The Index and Rearrange nodes through which a node sees another one, from the outside in."""
    chain: list[Index | Rearrange] = []
    while isinstance(node, Index | Rearrange) and is_concrete(node.shape):
        chain.append(node)
        node = node.children[0]
    return chain


def _array_below(node: Circuit) -> Array | None:
    chain = _chain(node)
    below = chain[-1].children[0] if chain else node
    return below if isinstance(below, Array) else None


def _picks(node: Index) -> bool:
    return any(isinstance(index, Picks) for index in node.axis_indices)


def _same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    return _storage(one) == _storage(other)
