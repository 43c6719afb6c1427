"""The end of a lowering: the model with what its results read and nothing else, every value named and stored once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir
from onnx_ir.tensor_adapters import TorchTensor

from tapeout.backends.common.weights import unused
from tapeout.backends.onnx.graph import Lowering, Value
from tapeout.backends.onnx.sharing import parts
from tapeout.ir import Circuit

IR_VERSION = 11
"""What goes with opset 23, and ONNX Runtime 1.31 takes (up to 13)."""


def finished(low: Lowering, roots: Sequence[Circuit]) -> onnx_ir.Model:
    """The model whose results are the values of the roots, with what they read and nothing else."""
    outputs: list[Value] = []
    for number, root in enumerate(roots):
        low.current = root
        value = low.value(root, low.dtype_of(root))
        if value.producer() is None or any(value is each for each in outputs):
            # an input, a constant, or the result of another root: a result of its own
            out = low.new_value(None, low.shape(value), low.kind(value))
            low.add_node("Identity", [value], {}, out)
            value = low.made["result", number] = out
        outputs.append(value)
    nodes = _needed(outputs, low.made.values())
    given = [low.values[symbol] for symbol in low.inputs]
    read = {value for node in nodes for value in node.inputs}
    constants = [value for value in low.constants.values() if value in read]
    nodes, constants = _stored_once(low, nodes, constants)
    _name(given, outputs, [low.name_of(root) for root in roots], constants, nodes)
    graph = onnx_ir.Graph(
        [*given, *(value for value in constants if value in low.data)],
        outputs,
        nodes=nodes,
        initializers=constants,
        opset_imports={"": low.opset},
        name="circuit",
    )
    return onnx_ir.Model(graph, ir_version=IR_VERSION, producer_name="tapeout")


def _stored_once(
    low: Lowering, nodes: list[onnx_ir.Node], constants: list[Value]
) -> tuple[list[onnx_ir.Node], list[Value]]:
    """The nodes and constants with slices in the places of constants that are part of others."""
    held = [value.const_value.raw for value in constants if isinstance(value.const_value, TorchTensor)]
    table: dict[Value, Value] = {}
    for i, part in parts(held).items():
        constant, whole = constants[i], low.reshape(constants[part.whole], part.shape)
        sizes = tuple(stop - start for start, stop in zip(part.starts, part.stops, strict=True))
        bounds = [low.integers(each) for each in (part.starts, part.stops)]
        table[constant] = low.reshape(low.emit("Slice", [whole, *bounds], sizes), low.shape(constant))
    if not table:
        return nodes, constants
    for node in nodes:
        for i, operand in enumerate(node.inputs):
            if operand is not None and operand in table:
                node.replace_input_with(i, table[operand])
    slices = _needed(list(table.values()), low.made.values())  # of constants alone: they can come first
    known, first = set(nodes), set(slices)
    for node in slices:
        if node not in known:
            node.metadata_props["origin"] = "part"
    ordered = [*slices, *(node for node in nodes if node not in first)]
    read = {value for node in ordered for value in node.inputs}
    return ordered, [value for value in low.constants.values() if value in read]


def _name(
    given: Sequence[Value],
    outputs: Sequence[Value],
    results: Sequence[str],
    constants: Sequence[Value],
    nodes: Sequence[onnx_ir.Node],
) -> None:
    """Gives every value the name of what it stands for in the circuit, with a number where that is taken."""
    taken = set[str]()
    made = [node.outputs[0] for node in nodes]
    wanted = [
        *((value, value.name or "input") for value in given),
        *zip(outputs, results, strict=True),
        *((value, value.name or "constant") for value in constants),
        *((value, node.metadata_props["origin"]) for value, node in zip(made, nodes, strict=True)),
    ]
    done = set[Value]()
    for value, name in wanted:
        if value not in done:
            done.add(value)
            value.name = unused(name, taken)
            taken.add(value.name)
    for value, node in zip(made, nodes, strict=True):
        node.name = value.name


def _needed(outputs: Sequence[Value], made: Iterable[Value]) -> list[onnx_ir.Node]:
    """The nodes that the outputs are made by, in the order in which they were built."""
    producers = [value.producer() for value in made]
    needed, read = list[onnx_ir.Node](), set(outputs)
    for node in reversed([node for node in producers if node is not None]):
        if node.outputs[0] in read:
            needed.append(node)
            read.update(value for value in node.inputs if value is not None)
    return needed[::-1]
