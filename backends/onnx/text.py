"""An ONNX model as text to read: one line a node, weights by name."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir


def readable(model: onnx_ir.Model) -> str:
    """`y [BATCH,4] = Gemm(x, w, b, transB=1)`, and so on."""
    graph = model.graph
    lines = [
        f"# opset {graph.opset_imports['']}, IR version {model.ir_version}",
        f"inputs {_listed(value for value in graph.inputs if value.name not in graph.initializers)}",
        *(f"data {_listed([value])}" for value in graph.inputs if value.name in graph.initializers),
        *(f"{_typed(value)} = weights" for value in graph.initializers.values() if _is_weight(value)),
    ]
    for node in graph:
        inputs = ["" if value is None else str(value.name) for value in node.inputs]
        attributes = [f"{name}={_attribute(attribute)}" for name, attribute in node.attributes.items()]
        results = ", ".join(_typed(value) for value in node.outputs)
        lines.append(f"{results} = {node.op_type}({', '.join([*inputs, *attributes])})")
    return "\n".join([*lines, f"outputs {_listed(graph.outputs)}"]) + "\n"


def _is_weight(value: onnx_ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point() and bool(value.shape)


def _listed(values: Iterable[onnx_ir.Value]) -> str:
    return ", ".join(f"{_typed(value)} {value.dtype.name.lower() if value.dtype else '?'}" for value in values)


def _typed(value: onnx_ir.Value) -> str:
    shape = "?" if value.shape is None else ",".join(str(size) for size in value.shape)
    return f"{value.name} [{shape}]"


def _attribute(attribute: onnx_ir.Attr) -> str:
    value = attribute.value
    return ",".join(map(str, value)).join("[]") if isinstance(value, list | tuple) else str(value)
