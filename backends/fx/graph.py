"""The graph that a lowering builds: what the rules ask for nodes, constants and sizes."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import fx

from tapeout.backends.common.precision import narrow_nodes, wide
from tapeout.backends.common.program import Program
from tapeout.backends.common.weights import Weights, unused
from tapeout.backends.fx.attributes import Attributes, identifier
from tapeout.backends.fx.fusing import fuse_products
from tapeout.ir import Circuit, Scalar
from tapeout.ir.errors import LoweringError, UnsupportedError
from tapeout.ir.sizes import Shape, Size, SymbolicSize, format_shape

Args = Sequence[fx.Node]
KindRule = Callable[["Lowering", Any], fx.Node]
Rule = Callable[["Lowering", Any, Args], fx.Node]
"""Of a function, which is given its operands' values."""


class Lowering:
    """The state of one lowering: the graph so far, and what has become of each node."""

    backend = "fx"

    def __init__(self, program: Program) -> None:
        self.typical_rows = program.rows
        self.graph = fx.Graph()
        full = wide(program.dtype)
        self.weights = Attributes(full, program.device)
        self.narrow_weights = self.weights if full is program.dtype else Weights(program.dtype, program.device)
        self.narrow_nodes = narrow_nodes(program.roots, program.dtype)
        self.origins, self.name_of = program.origins, program.name_of
        self.nodes: dict[Circuit, fx.Node] = {}
        self.current: Circuit | None = None
        self._made: dict[Hashable, fx.Node] = {}
        self._attributes: dict[str, fx.Node] = {}
        self._sizes: dict[str, fx.Node] = {}
        self._inputs = program.inputs
        taken = set[str]()
        for symbol in program.inputs:
            node = self.graph.placeholder(unused(identifier(symbol.name), taken))
            taken.add(str(node.target))
            node.meta["origin"] = symbol.name
            self.nodes[symbol] = node

    def finish(self, roots: Sequence[Circuit]) -> fx.GraphModule:
        """The module whose results are the values of the roots."""
        results = tuple(self.wide(root) for root in roots)
        self.graph.output(results[0] if len(results) == 1 else results)
        self.graph.eliminate_dead_code()
        if self.weights.device.type == "cuda":
            owners = {self.weights, self.narrow_weights}
            for owner in owners:
                owner.let_go()
            fuse_products(self.graph, self.weights.tensors, tuple(owners))
        root = torch.nn.Module()
        self.weights.register(root)
        module = fx.GraphModule(root, self.graph, class_name="Circuit")  # takes over what the graph reads
        module.graph.lint()
        return module.eval()

    def value(self, node: Circuit) -> fx.Node:
        """The graph's node for a circuit's node."""
        if node not in self.nodes:
            constant = self.weights.value(node)
            if constant is None:
                raise LoweringError(f"{node!r} was not lowered before its reader", hint="report it")
            self.nodes[node] = self.constant(constant, node)
        return self.nodes[node]

    def narrow(self, node: Circuit) -> fx.Node:
        """As `value`, in the dtype in which products are computed."""
        if self.narrow_weights is self.weights or node in self.narrow_nodes:
            return self.value(node)
        constant = self.narrow_weights.value(node)
        if constant is not None:
            return self.constant(constant, node)
        return self.once(("narrow", node), lambda: self.method("to", self.value(node), self.narrow_weights.dtype))

    def wide(self, node: Circuit) -> fx.Node:
        """As `value`, in the dtype in which all but products is computed."""
        if node not in self.narrow_nodes:
            return self.value(node)
        return self.once(("wide", node), lambda: self.method("to", self.value(node), self.weights.dtype))

    def dtype_of(self, node: Circuit) -> torch.dtype:
        return self.narrow_weights.dtype if node in self.narrow_nodes else self.weights.dtype

    @property
    def packed_bytes(self) -> int:
        """Bytes of copies of weights in another layout."""
        return sum(each.packed_bytes for each in {self.weights, self.narrow_weights})

    def constant(self, value: torch.Tensor, node: Circuit) -> fx.Node:
        """The graph's node for a constant tensor, called after the array that it is made of."""
        source = node
        while source.children:
            source = source.children[0]
        return self._attribute(self.weights.add(value, self.origins.get(source) or "constant"))

    def filled(self, value: float, shape: Shape) -> fx.Node:
        """The graph's node for one number at every place of a shape."""
        number = torch.full((), value, dtype=self.weights.dtype, device=self.weights.device)
        named = self.origins.get(self.current) if isinstance(self.current, Scalar) else None
        constant = self._attribute(self.weights.add(number, named or "constant"))
        return constant if not shape else self.call(torch.broadcast_to, constant, tuple(map(self.size, shape)))

    def number(self, value: float) -> float | fx.Node:
        """A number as an operand; what is none (infinite) is a constant, since TorchScript cannot write it."""
        return value if math.isfinite(value) else self.filled(value, ())

    def positions(self, values: Sequence[int]) -> fx.Node:
        """The graph's node for constant positions along an axis; equal ones are held once."""
        content = "positions " + ",".join(map(str, values))
        held = torch.tensor(values, dtype=torch.int64, device=self.weights.device)
        return self._attribute(self.weights.add(held, "positions", content))

    def signs(self, half: int) -> fx.Node:
        """The graph's node for -1 and then 1, each `half` times; held once."""
        signs = torch.tensor([-1.0, 1.0], dtype=self.weights.dtype, device=self.weights.device)
        return self._attribute(self.weights.add(signs.repeat_interleave(half), "signs", f"signs {half}"))

    def once(self, key: Hashable, make: Callable[[], fx.Node]) -> fx.Node:
        """What was made for the key before, or is made now."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _attribute(self, name: str) -> fx.Node:
        if name not in self._attributes:
            self._attributes[name] = self.graph.create_node("get_attr", name, name=name)
        return self._attributes[name]

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """A call, named after the circuit's node that is being lowered."""
        return self._create("call_function", function, args, kwargs)

    def method(self, method: str, *args: Any) -> fx.Node:
        """A call of a tensor's method: what TorchScript knows under no other name."""
        return self._create("call_method", method, args, {})

    def _create(self, sort: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        node = self.current
        name = identifier(self.name_of(node)) if node is not None else None
        out = self.graph.create_node(sort, target, args, kwargs, name=name)
        if node is not None:
            out.meta["origin"] = self.name_of(node)
            out.meta["shape"] = format_shape(node.shape)
        return out

    def size(self, size: Size) -> int | fx.Node:
        """A size as an argument: a number, or a symbolic one read off an input."""
        if isinstance(size, int):
            return size
        if len(size.dims) != 1:
            raise UnsupportedError(f"the size {size} cannot be read off an input", hint="bind all sizes but the batch")
        dimension = self._dimension(size.dims[0])
        return dimension if size.factor == 1 else self.call(operator.mul, dimension, size.factor)

    def _dimension(self, dim: str) -> fx.Node:
        if dim not in self._sizes:
            for symbol in self._inputs:
                for axis, size in enumerate(symbol.shape):
                    if size == SymbolicSize(1, (dim,)):
                        source = self.nodes[symbol]
                        with self.graph.inserting_after(source):
                            self._sizes[dim] = self.graph.call_method("size", (source, axis))
                        return self._sizes[dim]
            raise UnsupportedError(f"no input has the symbolic size {dim}", hint="bind all sizes but the batch")
        return self._sizes[dim]

    def shape(self, shape: Shape) -> list[int | fx.Node]:
        """A shape as arguments of reshape: one symbolic size may be left to torch as -1."""
        symbolic = [size for size in shape if not isinstance(size, int)]
        if len(symbolic) == 1 and 0 not in shape:
            return [size if isinstance(size, int) else -1 for size in shape]
        return [self.size(size) for size in shape]

    def reshape(self, node: fx.Node, have: Shape, want: Shape) -> fx.Node:
        return node if have == want else self.call(torch.reshape, node, tuple(self.shape(want)))

    def permute(self, node: fx.Node, order: Sequence[int]) -> fx.Node:
        return node if list(order) == list(range(len(order))) else self.call(torch.permute, node, tuple(order))
