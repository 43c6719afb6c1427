"""Moving constants: `cast_circuit`."""

from __future__ import annotations

from tapeout.ir.circuit import Circuit, postorder
from tapeout.ir.dtypes import TorchDeviceDtype, TorchDeviceDtypeOp
from tapeout.ir.nodes.array import Array
from tapeout.ir.symbol import Symbol


def cast_circuit(circuit: Circuit, device_dtype: TorchDeviceDtypeOp | TorchDeviceDtype) -> Circuit:
    """The circuit with every constant on another device or with another dtype; symbols of a known dtype follow.

    Integer constants below a floating circuit are cast too, as asked: cast the parts by themselves
    where both occur.
    """
    op = device_dtype.op() if isinstance(device_dtype, TorchDeviceDtype) else device_dtype
    dtype = op.get_torch_dtype()
    memo: dict[Circuit, Circuit] = {}
    for node in postorder(circuit):
        if isinstance(node, Array):
            memo[node] = Array(op.cast_tensor(node.value), node.op_name)
        elif isinstance(node, Symbol) and dtype is not None and node.torch_dtype is not None:
            memo[node] = node.conform(node.shape, dtype)
        else:
            memo[node] = _over(node, memo)
    return memo[circuit]


def _over(node: Circuit, memo: dict[Circuit, Circuit]) -> Circuit:
    from tapeout.ir.nodes.module import Module

    children = tuple(memo[child] for child in node.children)
    if isinstance(node, Module):
        return node.with_mapped_children(children, [memo.get(spec.symbol, spec.symbol) for spec in node.arg_specs])
    return node.with_children(children)
