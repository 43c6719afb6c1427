"""The same circuits in rust_circuit, which decides names, shapes and values where there is doubt.

`pytest.importorskip("rust_circuit")` comes before importing this module.
"""

from __future__ import annotations

from typing import Any

import rust_circuit as rc
import torch

from tapeout.ir import (
    Add,
    Array,
    Circuit,
    Concat,
    DiscreteVar,
    Einsum,
    GeneralFunction,
    Index,
    Module,
    Rearrange,
    Scalar,
    Scatter,
    SetSymbolicShape,
    Symbol,
    Tag,
    TorchDeviceDtypeOp,
    postorder,
)
from tapeout.ir.functions import Cast, GenIndex

UNKNOWN_FUNCTIONS = ("silu", "rotate_half")


class Inexpressible(Exception):
    """The oracle has no such node."""


def expressible(circuit: Circuit) -> Circuit:
    """The circuit with what the oracle does not have replaced by something of the same shape."""

    def replace(node: Circuit) -> Circuit:
        if isinstance(node, SetSymbolicShape):
            return node.node
        if isinstance(node, Scatter):
            sizes = [int(size) for size in node.shape]  # type: ignore[arg-type]
            return Array(
                torch.linspace(-1, 1, max(1, _product(sizes)), dtype=torch.float64).reshape(sizes),
                node.op_name,
            )
        return GeneralFunction.new_by_name(*node.children, spec_name="tanh", name=node.op_name)

    return circuit.update(_is_inexpressible, replace)


def _product(sizes: list[int]) -> int:
    out = 1
    for size in sizes:
        out *= size
    return out


def _is_inexpressible(node: Circuit) -> bool:
    if isinstance(node, Scatter):
        return any(not hasattr(index, "is_full") for index in node.axis_indices)
    return isinstance(node, SetSymbolicShape) or (
        isinstance(node, GeneralFunction) and node.spec.name in UNKNOWN_FUNCTIONS
    )


def to_rust(circuit: Circuit) -> Any:
    """The circuit as rust_circuit's.

    Raises:
        Inexpressible: if rust_circuit has no such node, or refuses it.
    """
    memo: dict[Circuit, Any] = {}
    for node in postorder(circuit):
        try:
            made = _make(node, [memo[child] for child in node.children])
        except (ValueError, OverflowError) as error:
            raise Inexpressible(f"{node!r}: {error}") from error
        memo[node] = made.rename(node.op_name)
    return memo[circuit]


def _sizes(shape: Any) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in shape)


def _index(node: Index | Scatter) -> list[Any]:
    return Index(Scalar(0.0, node.shape), node.axis_indices).idx if isinstance(node, Scatter) else node.idx


def _make(node: Circuit, children: list[Any]) -> Any:
    match node:
        case Array():
            return rc.Array(node.value)
        case Scalar():
            return rc.Scalar(node.value, _sizes(node.shape))
        case Symbol():
            return rc.Symbol(_sizes(node.shape), node.uuid)
        case Einsum():
            return rc.Einsum(*zip(children, node.in_axes, strict=True), out_axes=node.out_axes)
        case Add():
            return rc.Add(*children)
        case Rearrange():
            spec = node.spec
            ins, outs = ([list(group) for group in side] for side in (spec.input_ints, spec.output_ints))
            return rc.Rearrange(*children, rc.RearrangeSpec(ins, outs, list(_sizes(spec.int_sizes))))
        case Index():
            return rc.Index(*children, _index(node))
        case Concat():
            return rc.Concat(*children, axis=node.axis)
        case Scatter():
            return rc.Scatter(*children, _index(node), _sizes(node.shape))
        case GeneralFunction():
            return _function(node, children)
        case Module():
            specs = [
                rc.ModuleArgSpec(
                    _symbol(spec.symbol), spec.batchable, spec.expandable, spec.ban_non_symbolic_size_expand
                )
                for spec in node.arg_specs
            ]
            return rc.Module.new_flat(rc.ModuleSpec(children[0], specs, False, False), *children[1:])
        case Tag():
            return rc.Tag(*children, node.uuid)
        case DiscreteVar():
            return rc.DiscreteVar(*children)
    raise Inexpressible(node.kind)


def _symbol(symbol: Symbol) -> Any:
    return rc.Symbol(_sizes(symbol.shape), symbol.uuid, symbol.op_name)


def _function(node: GeneralFunction, children: list[Any]) -> Any:
    spec = node.spec
    if isinstance(spec, GenIndex):
        return rc.GeneralFunction.gen_index(
            *children, spec.index_dim, spec.batch_x, spec.batch_index, spec.check_index_ints
        )
    if isinstance(spec, Cast):
        return rc.GeneralFunction.new_cast(*children, *(_device_dtype(op) for op in (spec.required, spec.output)))
    if spec.name in UNKNOWN_FUNCTIONS:
        raise Inexpressible(spec.name)
    return rc.GeneralFunction.new_by_name(*children, spec_name=spec.name)


def _device_dtype(op: TorchDeviceDtypeOp) -> Any:
    return rc.TorchDeviceDtypeOp(op.device, op.get_torch_dtype())


def difference(ours: Circuit, theirs: Any) -> str | None:
    """The first place at which two circuits differ in kind, name, shape or number of children; None if nowhere.

    A node of ours without a name may have any: the oracle names nodes automatically when it rebuilds them.
    So may one that the oracle calls `... unsq_b_add`, which it calls `... rearrange` elsewhere.
    """
    seen: set[tuple[Circuit, Any]] = set()
    stack = [(ours, theirs)]
    while stack:
        pair = stack.pop()
        if pair in seen:
            continue
        seen.add(pair)
        mine, other = pair
        name = other.op_name
        if mine.op_name is None or (mine.name.endswith("rearrange") and other.name.endswith("unsq_b_add")):
            name = mine.op_name
        facts = [(mine.kind, mine.op_name, _sizes(mine.shape), len(mine.children))]
        facts.append((type(other).__name__, name, their_shape(other), len(other.children)))
        if facts[0] != facts[1]:
            return f"{facts[0]} against {facts[1]}"
        stack.extend(zip(mine.children, other.children, strict=True))
    return None


def their_shape(node: Any) -> tuple[int | None, ...]:
    return tuple(None if size == rc.Size.NONE else int(size) for size in node.shape)
