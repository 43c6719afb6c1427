"""What a circuit costs: counted from its shapes, before anything runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from opt_einsum import contract_path

from tapeout.backends.common.precision import narrow_arrays, narrow_nodes, wide
from tapeout.ir import Circuit, Einsum, Index, Rearrange, postorder
from tapeout.ir.axis_index import Picks
from tapeout.ir.nodes.einsum import write_einsum
from tapeout.ir.nodes.general_function import function_of
from tapeout.ir.nodes.kernels import Attention, Linear
from tapeout.ir.sizes import Size

Sizes = int | Mapping[str, int]
"""What symbolic sizes are taken to be: all of them one number (the batch), or each dimension its own."""

Bytes = Callable[[Circuit], int]
"""The bytes of a node's value."""

_VIEWS = frozenset(("Tag", "SetSymbolicShape", "Scalar", "Array", "Symbol"))


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
    def of(
        roots: Sequence[Circuit],
        batch: Sizes,
        dtype: torch.dtype,
        packed_bytes: int = 0,
        order: Sequence[Circuit] | None = None,
    ) -> Cost:
        """Counts, with symbolic sizes taken to be `batch` and nodes evaluated in that order (default: `postorder`)."""
        order = order or list(postorder(*roots))
        working = [node for node in order if not is_view(node)]
        size = value_bytes(roots, batch, dtype)
        return Cost(
            flops=sum(_flops(node, batch) for node in working),
            bytes_moved=sum(size(node) + sum(size(child) for child in set(node.children)) for node in working),
            weight_bytes=_weight_bytes(roots, dtype),
            packed_bytes=packed_bytes,
            peak_activation_bytes=peak_bytes(order, roots, size),
            nodes=len(working),
        )


def is_view(node: Circuit) -> bool:
    """Whether the node takes no work: constants, inputs, and what only looks at a value in another way."""
    if isinstance(node, Rearrange):
        read = {number for group in node.spec.input_ints for number in group}
        return all(number in read for group in node.spec.output_ints for number in group)
    if isinstance(node, Index):
        return not any(isinstance(index, Picks) for index in node.axis_indices)
    return node.kind in _VIEWS


def size_of(size: Size, batch: Sizes) -> int:
    if isinstance(size, int):
        return size
    return size.factor * prod(batch if isinstance(batch, int) else batch[name] for name in size.dims)


def elements(node: Circuit, batch: Sizes) -> int:
    return prod(size_of(size, batch) for size in node.shape)


def value_bytes(roots: Sequence[Circuit], batch: Sizes, dtype: torch.dtype) -> Bytes:
    """What tells the bytes of the nodes' values, where floating ones are computed in `dtype`."""
    narrow, full = narrow_nodes(roots, dtype), wide(dtype).itemsize

    def of(node: Circuit) -> int:
        own = node.torch_dtype
        if own is not None and not own.is_floating_point:
            return elements(node, batch) * own.itemsize
        return elements(node, batch) * (dtype.itemsize if node in narrow else full)

    return of


def _flops(node: Circuit, batch: Sizes) -> int:
    if isinstance(node, Einsum):
        return _product_flops(node.children, node.in_axes, node.out_axes, batch)
    if linear := function_of(node, Linear):
        return _product_flops(node.children[:2], (linear.x_axes, linear.weight_axes), linear.out_axes, batch)
    if function_of(node, Attention):
        q, k = node.children[:2]
        keys = size_of(k.shape[-2], batch)
        return 2 * elements(q, batch) * keys + 2 * elements(node, batch) * keys
    return elements(node, batch)


def _product_flops(
    children: Sequence[Circuit], axes: Sequence[tuple[int, ...]], out: tuple[int, ...], batch: Sizes
) -> int:
    """Two for each multiplication whose result is added up, one for each that is not; many operands go in pairs."""
    operands = [(child, own) for child, own in zip(children, axes, strict=True) if own]
    sizes = {axis: size_of(size, batch) for child, own in operands for axis, size in zip(own, child.shape, strict=True)}
    if len(operands) > 2:
        shapes = [[sizes[axis] for axis in own] for _, own in operands]
        text = write_einsum(tuple(own for _, own in operands), tuple(dict.fromkeys(out)))
        return int(contract_path(text, *shapes, shapes=True)[1].opt_cost)
    return prod(sizes.values()) * (2 if len(operands) > 1 and set(sizes) - set(out) else 1)


def _weight_bytes(roots: Sequence[Circuit], dtype: torch.dtype) -> int:
    """Each storage once in each of the dtypes in which it is held."""
    by_products, by_others = narrow_arrays(roots)
    held = {(array, dtype) for array in by_products} | {(array, wide(dtype)) for array in by_others}
    storages: dict[tuple[int, torch.dtype], int] = {}
    for array, target in held:
        value = array.cast_array().value
        kind = target if value.is_floating_point() else value.dtype
        storage = value.untyped_storage()
        storages[storage.data_ptr(), kind] = storage.nbytes() // value.element_size() * kind.itemsize
    return sum(storages.values())


def peak_bytes(order: Sequence[Circuit], roots: Sequence[Circuit], size: Bytes) -> int:
    """The largest set of values alive at once: freed after their last reader; what is a view of a value keeps it."""
    owner: dict[Circuit, Circuit] = {}
    for node in order:
        owner[node] = owner[node.children[0]] if is_view(node) and node.children else node
    reads = {node: {owner[child] for child in node.children} for node in order if owner[node] is node}
    readers = Counter(value for values in reads.values() for value in values)
    readers.update({owner[root] for root in roots})
    alive = peak = 0
    held: dict[Circuit, int] = {}
    for node, values in reads.items():
        held[node] = 0 if node.kind in ("Array", "Scalar") else size(node)
        alive += held[node]
        peak = max(peak, alive)
        for value in values:
            readers[value] -= 1
            if readers[value] == 0:
                alive -= held[value]
    return peak
