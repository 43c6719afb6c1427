"""The ONNX graph that a lowering builds: values with shapes, and what the rules ask for nodes and constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir
import torch
from onnx_ir.tensor_adapters import TorchTensor, from_torch_dtype, to_torch_dtype

from tapeout.backends.common.program import Program
from tapeout.backends.common.weights import Weights
from tapeout.backends.onnx.options import OnnxOptions
from tapeout.backends.onnx.sharing import merged
from tapeout.ir import Circuit
from tapeout.ir.errors import LoweringError, UnsupportedError
from tapeout.ir.sizes import Shape, Size, SymbolicSize

Value = onnx_ir.Value


class Lowering:
    """The state of one lowering: the graph so far, and what has become of each node.

    Every value has a shape and a dtype. What is built twice is one node. Reshapes and transposes are merged with
    those that made their operand; which of them nobody reads is left out at the end.

    Attributes:
        values: for the circuit's nodes, and its inputs, what has become of them.
        current: the node that is being lowered.
        made: the results of all nodes of the graph, in the order in which these were built.
        constants: the constants, each once.
        data: those of them that are data and no weights.
    """

    backend = "onnx"

    def __init__(self, program: Program, weights: Weights, options: OnnxOptions) -> None:
        self.typical_rows, self.origins, self.name_of = program.rows, program.origins, program.name_of
        self.weights, self.options = weights, options
        self.values: dict[Circuit, Value] = {}
        self.current: Circuit | None = None
        self.made: dict[tuple[Any, ...], Value] = {}
        self.constants: dict[tuple[Any, ...], Value] = {}
        self.data = set[Value]()
        self.inputs = program.inputs
        self._shapes: dict[Value, Shape] = {}
        for symbol in program.inputs:
            self.values[symbol] = self.new_value(symbol.name, symbol.shape, self.dtype_of(symbol))

    @property
    def opset(self) -> int:
        return self.options.opset

    @property
    def dtype(self) -> torch.dtype:
        """What floating values are computed in."""
        return self.weights.dtype

    # -- what a circuit's node is

    def dtype_of(self, node: Circuit) -> torch.dtype:
        kind = node.torch_dtype
        return self.dtype if kind is None or kind.is_floating_point else kind

    def value(self, node: Circuit, dtype: torch.dtype | None = None) -> Value:
        """The graph's value for a circuit's node, in its own or another dtype."""
        if node not in self.values:
            constant = self.weights.value(node)
            if constant is None:
                raise LoweringError(f"{node!r} was not lowered before its reader", hint="report it")
            self.values[node] = self.constant(constant, node)
        return self.values[node] if dtype is None else self.cast(self.values[node], dtype)

    def shape(self, value: Value) -> Shape:
        return self._shapes[value]

    def kind(self, value: Value) -> torch.dtype:
        """A value's dtype."""
        if value.dtype is None:
            raise LoweringError(f"{value.name} has no dtype", hint="report it")
        return to_torch_dtype(value.dtype)

    # -- nodes

    def emit(
        self,
        operator: str,
        inputs: Sequence[Value | None],
        shape: Shape,
        dtype: torch.dtype | None = None,
        **attributes: Any,
    ) -> Value:
        """A node's only result.

        Args:
            operator: ONNX's name for it.
            inputs: its operands; None for one that is left out.
            shape: the result's shape.
            dtype: the result's dtype; the first operand's by default.
            attributes: as the operator has them.
        """
        own = tuple(sorted((name, tuple(v) if isinstance(v, list) else v) for name, v in attributes.items()))
        key = (operator, tuple(map(id, inputs)), own, dtype)
        if key not in self.made:
            out = self.new_value(None, shape, dtype or self.kind(next(each for each in inputs if each is not None)))
            self.add_node(operator, inputs, attributes, out)
            self.made[key] = out
        return self.made[key]

    def add_node(
        self, operator: str, inputs: Sequence[Value | None], attributes: Mapping[str, Any], out: Value
    ) -> None:
        """A node whose result is a value that is there already."""
        node = onnx_ir.node(operator, inputs, attributes, outputs=[out])
        node.metadata_props["origin"] = operator if self.current is None else self.name_of(self.current)

    def new_value(self, name: str | None, shape: Shape, dtype: torch.dtype) -> Value:
        sizes = onnx_ir.Shape([_dimension(size) for size in shape])
        value = Value(name=name, shape=sizes, type=onnx_ir.TensorType(from_torch_dtype(dtype)))
        self._shapes[value] = shape
        return value

    def cast(self, value: Value, dtype: torch.dtype) -> Value:
        if self.kind(value) is dtype:
            return value
        return self.elementwise("Cast", value, dtype=dtype, to=int(from_torch_dtype(dtype)))

    # -- constants

    def constant(self, value: torch.Tensor, node: Circuit) -> Value:
        """The graph's value for a constant tensor, called after the array that it is made of.

        It is stored once, as it lies in memory: other views of the same memory are transposed, reshaped or repeated
        from that. Integers are data (tokens, labels): inputs with a default value, or a runtime would compute what
        depends on them when it loads the model.
        """
        source = node
        while source.children:
            source = source.children[0]
        name = self.origins.get(source) or "constant"
        once = value[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in value.stride())]
        order = list(range(once.ndim))
        if not once.is_contiguous():
            strides = once.stride()
            order.sort(key=lambda axis: -strides[axis])
        lying = once.permute(order)
        key = (lying.data_ptr(), lying.dtype, merged(lying)) if lying.numel() else (lying.dtype, tuple(lying.shape))
        if key not in self.constants:
            self.constants[key] = self._initializer(lying, name)
            if not value.dtype.is_floating_point:
                self.data.add(self.constants[key])
        out = self.reshape(self.constants[key], tuple(lying.shape))
        out = self.permute(out, [order.index(axis) for axis in range(once.ndim)])
        return self.expand(out, tuple(value.shape))

    def number(self, value: float, dtype: torch.dtype | None = None, shape: Shape = ()) -> Value:
        """One number at every place of a shape."""
        kind = dtype or self.dtype
        single = self._small(torch.tensor(value, dtype=torch.float64).to(kind), repr(value))
        return self.expand(single, shape)

    def integers(self, values: Sequence[int]) -> Value:
        """A list of integers: axes, sizes, positions."""
        text = ",".join(map(str, values[:6])) + ("" if len(values) <= 6 else ",...")
        return self._small(torch.tensor(list(values), dtype=torch.int64), f"[{text}]")

    def integer(self, value: int) -> Value:
        """One integer: a position."""
        return self._small(torch.tensor(value), str(value))

    def booleans(self, value: torch.Tensor, name: str) -> Value:
        """A constant of booleans."""
        return self._small(value, name)

    def _small(self, value: torch.Tensor, name: str) -> Value:
        key = (value.dtype, tuple(value.shape), tuple(value.reshape(-1).tolist()))
        if key not in self.constants:
            self.constants[key] = self._initializer(value, name)
        return self.constants[key]

    def _initializer(self, value: torch.Tensor, name: str) -> Value:
        out = self.new_value(name, tuple(value.shape), value.dtype)
        out.const_value = TorchTensor(value)
        return out

    # -- shapes

    def size(self, size: Size) -> Value:
        """A size as a list of one integer: a constant, or a symbolic one read off an input."""
        if isinstance(size, int):
            return self.integers([size])
        if len(size.dims) != 1:
            raise UnsupportedError(f"the size {size} cannot be read off an input", hint="bind all sizes but the batch")
        for symbol in self.inputs:
            for axis, own in enumerate(symbol.shape):
                if own == SymbolicSize(1, size.dims):
                    whole = self.emit("Shape", [self.values[symbol]], (symbol.rank,), torch.int64)
                    read = self.emit("Gather", [whole, self.integers([axis])], (1,), axis=0)
                    return read if size.factor == 1 else self.emit("Mul", [read, self.integers([size.factor])], (1,))
        raise UnsupportedError(f"no input has the symbolic size {size.dims[0]}", hint="bind all sizes but the batch")

    def sizes(self, shape: Shape) -> Value:
        """A shape as a list of integers."""
        known = [size for size in shape if isinstance(size, int)]
        if len(known) == len(shape):
            return self.integers(known)
        return self.emit("Concat", [self.size(size) for size in shape], (len(shape),), axis=0)

    def reshape(self, value: Value, shape: Shape) -> Value:
        """The value in another shape; of what it was reshaped from where it was."""
        if self.shape(value) == shape:
            return value
        source = self.source(value, "Reshape")
        if source is not None:
            return self.reshape(source, shape)
        known = [size for size in shape if isinstance(size, int)]
        if 0 in known:
            if self.opset < 14:
                raise UnsupportedError("a reshape to an axis of size 0", hint="use opset 14 or newer")
            return self.emit("Reshape", [value, self.sizes(shape)], shape, allowzero=1)
        if len(known) + 1 == len(shape):
            where = self.integers([size if isinstance(size, int) else -1 for size in shape])
            return self.emit("Reshape", [value, where], shape)
        return self.emit("Reshape", [value, self.sizes(shape)], shape)

    def permute(self, value: Value, order: Sequence[int]) -> Value:
        """The value with its axes in another order: a transpose, or a reshape where only axes of size 1 move."""
        shape = tuple(self.shape(value)[axis] for axis in order)
        moved = [axis for axis in order if self.shape(value)[axis] != 1]
        if moved == sorted(moved):
            return self.reshape(value, shape)
        source = self.source(value, "Transpose")
        if source is not None:
            before = self.transposition(value)
            return self.permute(source, [before[axis] for axis in order])
        return self.emit("Transpose", [value], shape, perm=list(order))

    def source(self, value: Value, operator: str) -> Value | None:
        """What a node of that operator made the value of; None if none did."""
        node = value.producer()
        return node.inputs[0] if node is not None and node.op_type == operator else None

    def transposition(self, value: Value) -> list[int]:
        """The order of axes of the transpose that made the value."""
        node = value.producer()
        if node is None or node.op_type != "Transpose":
            raise LoweringError(f"{value.name} is no transpose", hint="report it")
        return list(node.attributes["perm"].as_ints())

    def expand(self, value: Value, shape: Shape) -> Value:
        """The value repeated to a shape."""
        return value if self.shape(value) == shape else self.emit("Expand", [value, self.sizes(shape)], shape)

    def elementwise(self, operator: str, *values: Value, dtype: torch.dtype | None = None, **attributes: Any) -> Value:
        """An operator that works element by element, on operands that broadcast.

        Where operands are reshaped from one shape, it works on that: sequences of rows stay lists of rows from one
        product to the next.
        """
        shape = broadcast(*(self.shape(value) for value in values))
        rows = self.rows(shape, *values)
        if rows is not None:
            values, whole = tuple(self.reshape(v, rows) if self.shape(v) == shape else v for v in values), shape
            return self.reshape(self.emit(operator, values, rows, dtype, **attributes), whole)
        return self.emit(operator, values, shape, dtype, **attributes)

    def rowwise(self, operator: str, value: Value, *vectors: Value, **attributes: Any) -> Value:
        """An operator that works along the last axis, with vectors of its length; on rows where there are rows."""
        shape, source = self.shape(value), self.source(value, "Reshape")
        if source is not None and shape and self.shape(source)[-1:] == shape[-1:]:
            return self.reshape(self.emit(operator, [source, *vectors], self.shape(source), **attributes), shape)
        return self.emit(operator, [value, *vectors], shape, **attributes)

    def reduce(self, operator: str, value: Value, axes: Sequence[int], keep: bool = False) -> Value:
        """A reduction of some axes, which go away or keep size 1."""
        shape = tuple(
            1 if axis in axes else size for axis, size in enumerate(self.shape(value)) if keep or axis not in axes
        )
        if operator == "ReduceSum" or self.opset >= 18:
            return self.emit(operator, [value, self.integers(axes)], shape, keepdims=int(keep))
        return self.emit(operator, [value], shape, keepdims=int(keep), axes=list(axes))

    def rows(self, shape: Shape, *values: Value) -> Shape | None:
        """The shape that a value was reshaped from, if all of them can be computed with in it."""
        for value in values:
            source = self.source(value, "Reshape") if self.shape(value) == shape else None
            if source is None or not shape:
                continue
            rows = self.shape(source)
            if all(self.shape(v) == shape or _is_of_last_axis(self.shape(v), rows, shape) for v in values):
                return rows
        return None


def broadcast(*shapes: Shape) -> Shape:
    """The shape of what broadcasts from shapes that are known to fit."""
    rank = max(map(len, shapes))
    full = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(next((size for size in column if size != 1), 1) for column in zip(*full, strict=True))


def _is_of_last_axis(shape: Shape, rows: Shape, whole: Shape) -> bool:
    """Whether an operand of that shape broadcasts alike over both: it has at most the last axis, which both share."""
    return not shape or (len(shape) == 1 and bool(rows) and rows[-1] == whole[-1])


def _dimension(size: Size) -> int | str | None:
    if isinstance(size, int):
        return size
    return size.dims[0] if size.factor == 1 and len(size.dims) == 1 and not size.is_unknown else None
