"""What a circuit costs: counted from its shapes, before anything runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tapeout.ir import Array, Circuit, Einsum, GeneralFunction, Symbol, postorder
from tapeout.ir.kernels import Attention, Linear
from tapeout.ir.sizes import Size

_VIEWS = frozenset(("Index", "Rearrange", "Tag", "SetSymbolicShape", "Scalar", "Array", "Symbol"))


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one call.

    Attributes:
        flops: floating-point operations of products (a multiplication and an addition are two) and one an
            element of everything else.
        bytes_moved: bytes read and written by all operations, each operand once.
        weight_bytes: the constants, each storage once.
        packed_bytes: copies of constants in another layout, on top.
        peak_activation_bytes: the largest set of values alive at once, in the order of evaluation.
        nodes: nodes that compute something.
    """

    flops: int
    bytes_moved: int
    weight_bytes: int
    packed_bytes: int
    peak_activation_bytes: int
    nodes: int

    @property
    def peak_bytes(self) -> int:
        return self.weight_bytes + self.packed_bytes + self.peak_activation_bytes

    @staticmethod
    def of(roots: Sequence[Circuit], batch: int, dtype: torch.dtype, packed_bytes: int = 0) -> Cost:
        """Counts. Symbolic sizes (the batch) are taken to be `batch`."""
        order = list(postorder(*roots))
        working = [node for node in order if node.kind not in _VIEWS]
        width = dtype.itemsize
        return Cost(
            flops=sum(_flops(node, batch) for node in working),
            bytes_moved=sum(
                _bytes(node, batch, width) + sum(_bytes(child, batch, width) for child in set(node.children))
                for node in working
            ),
            weight_bytes=_weight_bytes(order, dtype),
            packed_bytes=packed_bytes,
            peak_activation_bytes=_peak(order, roots, batch, width),
            nodes=len(working),
        )


def size_of(size: Size, batch: int) -> int:
    if isinstance(size, int):
        return size
    out = size.factor
    for _ in size.dims:
        out *= batch
    return out


def elements(node: Circuit, batch: int) -> int:
    out = 1
    for size in node.shape:
        out *= size_of(size, batch)
    return out


def _bytes(node: Circuit, batch: int, width: int) -> int:
    dtype = node.torch_dtype
    return elements(node, batch) * (width if dtype is None or dtype.is_floating_point else dtype.itemsize)


def _flops(node: Circuit, batch: int) -> int:
    if isinstance(node, Einsum):
        return _product_flops(node.children, node.in_axes, batch)
    if isinstance(node, GeneralFunction) and isinstance(node.spec, Linear):
        return _product_flops(node.children[:2], (node.spec.x_axes, node.spec.weight_axes), batch)
    if isinstance(node, GeneralFunction) and isinstance(node.spec, Attention):
        q, k = node.children[:2]
        keys = size_of(k.shape[-2], batch)
        return 2 * elements(q, batch) * keys + 2 * elements(node, batch) * keys
    return elements(node, batch)


def _product_flops(children: Sequence[Circuit], axes: Sequence[tuple[int, ...]], batch: int) -> int:
    sizes = {
        axis: size_of(size, batch)
        for child, own in zip(children, axes, strict=True)
        for axis, size in zip(own, child.shape, strict=True)
    }
    out = 1
    for size in sizes.values():
        out *= size
    return 2 * out if sum(bool(own) for own in axes) > 1 else out


def _weight_bytes(order: Sequence[Circuit], dtype: torch.dtype) -> int:
    storages: dict[int, int] = {}
    for node in order:
        if isinstance(node, Array):
            value = node.value
            width = dtype.itemsize if value.is_floating_point() else value.element_size()
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes() // value.element_size() * width
    return sum(storages.values())


def _peak(order: Sequence[Circuit], roots: Sequence[Circuit], batch: int, width: int) -> int:
    readers = Counter(child for node in order for child in set(node.children))
    readers.update(set(roots))
    alive = peak = 0
    held: dict[Circuit, int] = {}
    for node in order:
        held[node] = 0 if node.kind in _VIEWS and not isinstance(node, Symbol) else _bytes(node, batch, width)
        alive += held[node]
        peak = max(peak, alive)
        for child in set(node.children):
            readers[child] -= 1
            if readers[child] == 0:
                alive -= held[child]
    return peak
