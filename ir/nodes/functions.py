"""The functions that a GeneralFunction can apply: name, shape rule, dtype rule, batching and what it computes.

A plain function is one row of `FUNCTIONS`. Functions with parameters (`gen_index`, `cast`) are small
classes with the same interface.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch.nn import functional as F

from tapeout.ir.axis_index import FULL
from tapeout.ir.batching import gained
from tapeout.ir.circuit import Circuit
from tapeout.ir.dtypes import TorchDeviceDtypeOp, dtype_name, join_dtypes
from tapeout.ir.errors import DataError, ShapeError, TypeMismatchError
from tapeout.ir.index_rules import AxisIndices, Pushed, broadcast_reads, count_integers
from tapeout.ir.nodes.concat import repeat_to_batch
from tapeout.ir.sizes import Shape, SizeMismatch, Unifier, format_shape


class Function(Protocol):
    """What the IR asks of a function. Implementations are immutable, hashable and compared by value."""

    @property
    def name(self) -> str:
        """Its name, parameters included, as it stands in a circuit's text."""

    def infer(self, node: Circuit) -> tuple[Shape, torch.dtype | None]:
        """Shape and dtype for the node's children; raises ShapeError or TypeMismatchError."""

    def expand(self, node: Circuit, children: tuple[Circuit, ...]) -> tuple[Function, tuple[Circuit, ...]]:
        """The function and the children over which the result is batched."""

    def apply(self, *tensors: torch.Tensor) -> torch.Tensor:
        """What it computes."""


@runtime_checkable
class TakesIndex(Protocol):
    """A function that an index of its result can enter."""

    def push_index(self, node: Circuit, index: AxisIndices) -> Pushed:
        """See `Circuit.push_index`."""


# -- plain functions


@dataclass(frozen=True, slots=True)
class Elementwise:
    """A function of one node that keeps its shape, and its dtype: integers only where these stay integers."""

    name: str
    torch_function: Callable[[torch.Tensor], torch.Tensor]
    acts_on_last: bool = False
    even_last: bool = False
    integers: bool = False

    def infer(self, node: Circuit) -> tuple[Shape, torch.dtype | None]:
        child = _one_child(self.name, node, int(self.acts_on_last))
        last = child.shape[-1] if child.shape else 0
        if self.even_last and isinstance(last, int) and last % 2:
            raise ShapeError(
                f"{self.name} of {child!r}: the last axis has odd size {last}",
                hint="its two halves change places",
            )
        dtype = child.torch_dtype
        if dtype is not None and not dtype.is_floating_point and not self.integers:
            raise TypeMismatchError(
                f"{self.name} of {child!r}, which has dtype {child.dtype}",
                hint="cast it to a floating dtype first (GeneralFunction.new_cast)",
            )
        return child.shape, child.torch_dtype

    def expand(self, node: Circuit, children: tuple[Circuit, ...]) -> tuple[Function, tuple[Circuit, ...]]:
        return self, children

    def push_index(self, node: Circuit, index: AxisIndices) -> Pushed:
        taken = (*index[:-1], FULL) if self.acts_on_last else index
        return Pushed(taken, ((node.children[0], taken),), node.with_children)

    def apply(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.torch_function(tensors[0])


@dataclass(frozen=True, slots=True)
class Reduction:
    """A function of one node that removes its last axis."""

    name: str
    torch_function: Callable[[torch.Tensor], torch.Tensor]
    of_any_size: bool = False

    def infer(self, node: Circuit) -> tuple[Shape, torch.dtype | None]:
        child = _one_child(self.name, node, 1)
        if child.shape[-1] == 0 and not self.of_any_size:
            raise ShapeError(f"{self.name} over no entries: {child!r}", hint="give the last axis at least one")
        return child.shape[:-1], child.torch_dtype

    def expand(self, node: Circuit, children: tuple[Circuit, ...]) -> tuple[Function, tuple[Circuit, ...]]:
        return self, children

    def push_index(self, node: Circuit, index: AxisIndices) -> Pushed:
        return Pushed(index, ((node.children[0], (*index, FULL)),), node.with_children)

    def apply(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.torch_function(tensors[0])


@dataclass(frozen=True, slots=True)
class Broadcast:
    """A function of several nodes that broadcast against each other."""

    name: str
    torch_function: Callable[..., torch.Tensor]
    arity: int = 2

    def infer(self, node: Circuit) -> tuple[Shape, torch.dtype | None]:
        from tapeout.ir.nodes.add import broadcast_shapes

        _check_arity(self.name, node, self.arity)
        return broadcast_shapes(node), join_dtypes(node, node.children)

    def expand(self, node: Circuit, children: tuple[Circuit, ...]) -> tuple[Function, tuple[Circuit, ...]]:
        from tapeout.ir.nodes.add import Add

        return self, Add(*node.children, name=None).expand(children).children

    def push_index(self, node: Circuit, index: AxisIndices) -> Pushed:
        return Pushed(index, broadcast_reads(node, index), node.with_children)

    def apply(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.torch_function(*tensors)


def _rotate_half(x: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def _last_dim_size(x: torch.Tensor) -> torch.Tensor:
    return torch.full(x.shape[:-1], x.shape[-1], dtype=x.dtype, device=x.device)


def _gelu_new(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


FUNCTIONS: dict[str, Function] = {
    function.name: function
    for function in (
        Elementwise("sin", torch.sin),
        Elementwise("cos", torch.cos),
        Elementwise("sigmoid", torch.sigmoid),
        Elementwise("tanh", torch.tanh),
        Elementwise("rsqrt", torch.rsqrt),
        Elementwise("gelu", F.gelu),
        Elementwise("gelu_new", _gelu_new),
        Elementwise("silu", F.silu),
        Elementwise("relu", torch.relu, integers=True),
        Elementwise("step", lambda x: (x > 0).to(x.dtype), integers=True),
        Elementwise("reciprocal", torch.reciprocal),
        Elementwise("log_exp_p_1", lambda x: torch.logaddexp(x, torch.zeros_like(x))),
        Elementwise("gaussian_pdf", lambda x: torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)),
        Elementwise("gaussian_cdf", torch.special.ndtr),
        Elementwise("abs", torch.abs, integers=True),
        Elementwise("exp", torch.exp),
        Elementwise("log", torch.log),
        Elementwise("logit", torch.logit),
        Elementwise("softmax", lambda x: torch.softmax(x, -1), acts_on_last=True),
        Elementwise("log_softmax", lambda x: torch.log_softmax(x, -1), acts_on_last=True),
        Elementwise("rotate_half", _rotate_half, acts_on_last=True, even_last=True, integers=True),
        Reduction("min", lambda x: x.amin(-1)),
        Reduction("max", lambda x: x.amax(-1)),
        Reduction("last_dim_size", _last_dim_size, of_any_size=True),
        Broadcast("pow", torch.pow),
        Broadcast("minimum", torch.minimum),
        Broadcast("maximum", torch.maximum),
    )
}
"""Every plain function by name. They act on the last axis where they act on one."""


# -- functions with parameters


@dataclass(frozen=True, slots=True)
class GenIndex:
    """Looks up entries of `x` along one axis by a node of integers.

    With `batch_x` and `batch_index` the index's shape is a batch shape that `x` has too, and
    `index_dim` counts in what follows it. With `batch_index` alone the index's shape comes first in
    the result. Otherwise the index's shape takes the place of the axis (which must be counted from
    the end if `batch_x`).
    """

    index_dim: int
    batch_x: bool = False
    batch_index: bool = True
    check_index_ints: bool = True

    @property
    def name(self) -> str:
        flags = (
            ("_batch_x" * self.batch_x) + ("_no_batch_index" * (not self.batch_index)) + ("_c" * self.check_index_ints)
        )
        return f"gen_index_at_{self.index_dim}{flags}"

    def _axis(self, x: Shape, index: Shape) -> int:
        """The axis of `x` that is looked up, counted from the front."""
        start = len(index) if self.batch_x and self.batch_index else 0
        rank = len(x) - start
        if not -rank <= self.index_dim < rank:
            raise ShapeError(
                f"{self.name}: no axis {self.index_dim} in {format_shape(x)} (index {format_shape(index)})",
                hint="index_dim counts in the part of x that is no batch shape; if both are batched, "
                "x begins with the index's shape",
            )
        if self.batch_x and not self.batch_index and self.index_dim >= 0:
            raise ShapeError(
                f"{self.name}: index_dim must be negative if only x is batched", hint="count it from the end"
            )
        return start + self.index_dim % rank

    def axis_of(self, node: Circuit) -> int:
        """The axis of a node's first child that is looked up, counted from the front."""
        return self._axis(node.children[0].shape, node.children[1].shape)

    def infer(self, node: Circuit) -> tuple[Shape, torch.dtype | None]:
        _check_arity(self.name, node, 2)
        x, index = node.children
        if index.torch_dtype not in (None, torch.int64):
            raise TypeMismatchError(
                f"{self.name}: the index {index!r} has dtype {index.dtype}",
                hint="an index must be int64: index.to(torch.int64)",
            )
        axis = self._axis(x.shape, index.shape)
        if not self.batch_index:
            return x.shape[:axis] + index.shape + x.shape[axis + 1 :], x.torch_dtype
        if not self.batch_x:
            return index.shape + x.shape[:axis] + x.shape[axis + 1 :], x.torch_dtype
        unifier = Unifier()
        try:
            batch = tuple(unifier.unify(left, right) for left, right in zip(x.shape, index.shape, strict=False))
        except SizeMismatch:
            raise ShapeError(
                f"{self.name}: x {format_shape(x.shape)} does not begin with the index's shape "
                f"{format_shape(index.shape)}",
                facts=[repr(x), repr(index)],
                hint="with batch_x and batch_index the index's shape is the batch shape of both",
            ) from None
        return batch + x.shape[len(batch) : axis] + x.shape[axis + 1 :], x.torch_dtype

    def expand(self, node: Circuit, children: tuple[Circuit, ...]) -> tuple[Function, tuple[Circuit, ...]]:
        (x, index), batch = children, gained(node, children)
        extra_x, extra_index = batch.ranks
        rank_x = x.rank - extra_x
        if extra_x == 0 and self.batch_index and not self.batch_x:
            return self, children
        if extra_index == 0 and not self.batch_index:
            dim = self.index_dim if self.index_dim < 0 else self.index_dim - rank_x
            return GenIndex(dim, True, False, self.check_index_ints), children
        # Both in one batch: x repeats along what only the index has, and the other way round.
        count = len(batch.shape)
        x = repeat_to_batch(x, extra_x, batch.shape)
        index = repeat_to_batch(index, extra_index, batch.shape)
        both = GenIndex(self.index_dim, True, True, self.check_index_ints)
        if self.batch_x and self.batch_index:
            return both, (x, index)
        own_index = index.shape[count:]
        if self.batch_index:
            return both, (x.expand_at_axes(range(count, count + len(own_index)), own_index), index)
        before = x.shape[count : count + self.index_dim % rank_x]
        middle = count + len(before)
        x = x.expand_at_axes(range(middle, middle + len(own_index)), own_index)
        index = index.expand_at_axes(range(count, middle), before)
        return GenIndex(self.index_dim % rank_x - rank_x, True, True, self.check_index_ints), (x, index)

    def push_index(self, node: Circuit, index: AxisIndices) -> Pushed:
        """Axes that come from x go to x, those from the index to the index, batch axes to both."""
        x, where = node.children
        axis = self._axis(x.shape, where.shape)
        if self.batch_index:
            first, rest = index[: where.rank], index[where.rank :]
            of_x = index if self.batch_x else rest
            of_x = (*of_x[:axis], FULL, *of_x[axis:])
        else:
            first = index[axis : axis + where.rank]
            of_x = (*index[:axis], FULL, *index[axis + where.rank :])
        start = where.rank if self.batch_x and self.batch_index else 0
        function = self._without(of_x[axis + 1 :], of_x[start:axis])
        reads = ((x, of_x), (where, first))
        return Pushed(index, reads, lambda children: node._make((function,), children, node.op_name))

    def _without(self, after: AxisIndices, before: AxisIndices) -> GenIndex:
        """The function over an x that has lost axes after, and between the batch and, the one looked up."""
        if not count_integers(after) and (self.index_dim < 0 or not count_integers(before)):
            return self
        gone = count_integers(after) if self.index_dim < 0 else -count_integers(before)
        return GenIndex(self.index_dim + gone, self.batch_x, self.batch_index, self.check_index_ints)

    def apply(self, *tensors: torch.Tensor) -> torch.Tensor:
        x, index = tensors
        axis = self._axis(tuple(x.shape), tuple(index.shape))
        if self.check_index_ints and index.numel():
            check_range(index, x.shape[axis], self.name)
        if self.batch_x and self.batch_index:
            where = index.reshape(*index.shape, *[1] * (x.ndim - index.ndim)).expand(
                *(1 if i == axis else size for i, size in enumerate(x.shape))
            )
            return x.gather(axis, where).squeeze(axis)
        picked = x.index_select(axis, index.reshape(-1))
        picked = picked.reshape(x.shape[:axis] + index.shape + x.shape[axis + 1 :])
        if self.batch_index and axis:
            picked = picked.movedim(tuple(range(axis, axis + index.ndim)), tuple(range(index.ndim)))
        return picked


@dataclass(frozen=True, slots=True)
class Cast:
    """Moves a node to another dtype, and checks what it had."""

    required: TorchDeviceDtypeOp
    output: TorchDeviceDtypeOp

    @property
    def name(self) -> str:
        return f"cast_from_{_device_dtype_text(self.required)}_to_{_device_dtype_text(self.output)}"

    def infer(self, node: Circuit) -> tuple[Shape, torch.dtype | None]:
        child = _one_child(self.name, node, 0)
        required = self.required.get_torch_dtype()
        if required is not None and child.torch_dtype not in (None, required):
            raise TypeMismatchError(
                f"{self.name}: {child!r} has dtype {child.dtype}",
                hint=f"this cast takes {dtype_name(required)} only",
            )
        return child.shape, self.output.get_torch_dtype() or child.torch_dtype

    def expand(self, node: Circuit, children: tuple[Circuit, ...]) -> tuple[Function, tuple[Circuit, ...]]:
        return self, children

    def push_index(self, node: Circuit, index: AxisIndices) -> Pushed:
        return Pushed(index, ((node.children[0], index),), node.with_children)

    def apply(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.output.cast_tensor(tensors[0])


def check_range(index: torch.Tensor, size: int, what: str) -> None:
    """Raises DataError if an entry of `index` is not in `0 .. size - 1`."""
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= size:
        raise DataError(
            f"{what}: index {low if low < 0 else high} is outside 0 to {size - 1}",
            hint="tokens must come from the tokenizer of this model; its vocabulary has "
            f"{size} entries (negative indices are not wrapped)",
        )


def _device_dtype_text(op: TorchDeviceDtypeOp) -> str:
    return f"{{device:{op.device},dtype:{op.dtype}}}"


def _one_child(name: str, node: Circuit, min_rank: int) -> Circuit:
    _check_arity(name, node, 1)
    child = node.children[0]
    if child.rank < min_rank:
        raise ShapeError(
            f"{name} acts on the last axis, but {child!r} has rank {child.rank}",
            hint="unsqueeze or expand the node first",
        )
    return child


def _check_arity(name: str, node: Circuit, arity: int) -> None:
    if len(node.children) != arity:
        raise ShapeError(f"{name} takes {arity} nodes, not {len(node.children)}", hint=f"give {arity}")


def known_functions() -> Sequence[str]:
    return sorted(FUNCTIONS)
