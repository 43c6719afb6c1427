"""Circuits as rust_circuit's own.

rust_circuit is needed by nothing at run time: it is imported when a circuit is converted.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

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
    Symbol,
    Tag,
    TorchDeviceDtypeOp,
    postorder,
)
from tapeout.ir.errors import UnsupportedError
from tapeout.ir.nodes.functions import Cast, GenIndex

UNKNOWN_FUNCTIONS = ("silu", "rotate_half")
"""What rust_circuit has no function for."""


def installed() -> bool:
    """Whether rust_circuit is here: it has wheels for CPython 3.11 on Linux only."""
    return find_spec("rust_circuit") is not None


def to_rust(circuit: Circuit) -> Any:
    """The circuit as rust_circuit's.

    Raises:
        UnsupportedError: if rust_circuit has no such node, or refuses it.
    """
    rc: Any = import_module("rust_circuit")
    memo: dict[Circuit, Any] = {}
    for node in postorder(circuit):
        try:
            made = _make(rc, node, [memo[child] for child in node.children])
        except (ValueError, OverflowError) as error:
            raise _inexpressible(node, str(error)) from error
        memo[node] = made.rename(node.op_name)
    return memo[circuit]


def sizes_of(shape: Any) -> tuple[int | None, ...]:
    """The sizes as rust_circuit has them: None for what is no number."""
    return tuple(size if isinstance(size, int) else None for size in shape)


def _index(node: Index | Scatter) -> list[Any]:
    return Index(Scalar(0.0, node.shape), node.axis_indices).idx if isinstance(node, Scatter) else node.idx


def _make(rc: Any, node: Circuit, children: list[Any]) -> Any:
    match node:
        case Array():
            return rc.Array(node.value)
        case Scalar():
            return rc.Scalar(node.value, sizes_of(node.shape))
        case Symbol():
            return rc.Symbol(sizes_of(node.shape), node.uuid)
        case Einsum():
            return rc.Einsum(*zip(children, node.in_axes, strict=True), out_axes=node.out_axes)
        case Add():
            return rc.Add(*children)
        case Rearrange():
            spec = node.spec
            ins, outs = ([list(group) for group in side] for side in (spec.input_ints, spec.output_ints))
            return rc.Rearrange(*children, rc.RearrangeSpec(ins, outs, list(sizes_of(spec.int_sizes))))
        case Index():
            return rc.Index(*children, _index(node))
        case Concat():
            return rc.Concat(*children, axis=node.axis)
        case Scatter():
            return rc.Scatter(*children, _index(node), sizes_of(node.shape))
        case GeneralFunction():
            return _function(rc, node, children)
        case Module():
            specs = [
                rc.ModuleArgSpec(
                    _symbol(rc, spec.symbol), spec.batchable, spec.expandable, spec.ban_non_symbolic_size_expand
                )
                for spec in node.arg_specs
            ]
            return rc.Module.new_flat(rc.ModuleSpec(children[0], specs, False, False), *children[1:])
        case Tag():
            return rc.Tag(*children, node.uuid)
        case DiscreteVar():
            return rc.DiscreteVar(*children)
    raise _inexpressible(node, f"it has no {node.kind}")


def _symbol(rc: Any, symbol: Symbol) -> Any:
    return rc.Symbol(sizes_of(symbol.shape), symbol.uuid, symbol.op_name)


def _function(rc: Any, node: GeneralFunction, children: list[Any]) -> Any:
    spec = node.spec
    if isinstance(spec, GenIndex):
        return rc.GeneralFunction.gen_index(
            *children, spec.index_dim, spec.batch_x, spec.batch_index, spec.check_index_ints
        )
    if isinstance(spec, Cast):
        return rc.GeneralFunction.new_cast(*children, *(_device_dtype(rc, op) for op in (spec.required, spec.output)))
    if spec.name in UNKNOWN_FUNCTIONS:
        raise _inexpressible(node, f"it has no function {spec.name}")
    return rc.GeneralFunction.new_by_name(*children, spec_name=spec.name)


def _device_dtype(rc: Any, op: TorchDeviceDtypeOp) -> Any:
    return rc.TorchDeviceDtypeOp(op.device, op.get_torch_dtype())


def _inexpressible(node: Circuit, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"rust_circuit cannot express {node!r}: {why}", hint="compare with the reference, which is always there"
    )
