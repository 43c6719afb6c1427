"""Lowering to torch.fx: a node at a time, each kind and function by one rule."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from opt_einsum import contract_path
from torch import fx
from torch.nn import functional as F

from tapeout.backends.fx.weights import Weights, identifier, unused
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
    postorder,
)
from tapeout.ir.axis_index import Picks, Span
from tapeout.ir.einsum import Axes, write_einsum
from tapeout.ir.errors import LoweringError, TapeoutError, UnsupportedError
from tapeout.ir.functions import Cast, GenIndex
from tapeout.ir.kernels import Attention, LayerNorm, Linear, RMSNorm
from tapeout.ir.sizes import Shape, Size, SymbolicSize, format_shape

Args = Sequence[fx.Node]
Operand = tuple[fx.Node, Axes]
Rule = Callable[["Lowering", Any, Args], fx.Node]


_GUESSED_BATCH = 64
"""How long the batch axis is taken to be where the order of products is chosen."""


def lower(
    roots: Sequence[Circuit],
    inputs: Sequence[Symbol],
    origins: Mapping[Circuit, str],
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> tuple[fx.GraphModule, Weights]:
    """The circuits as one GraphModule: one argument an input, one result a root (a tuple for several).

    Args:
        roots: without modules and random variables; their free symbols must be among the inputs.
        inputs: symbols, in the order of the arguments. A symbolic size that occurs in them is read off at run time.
        origins: names for nodes.
        dtype: what constants are cast to.
        device: where constants are moved.

    Raises:
        UnsupportedError: for a kind or function without a rule.
        LoweringError: for anything else that goes wrong, with the node.
    """
    lowering = Lowering(inputs, origins, Weights(dtype, device))
    return lowering.run(roots), lowering.weights


class Lowering:
    """The state of one lowering: the graph so far, and what has become of each node."""

    def __init__(self, inputs: Sequence[Symbol], origins: Mapping[Circuit, str], weights: Weights) -> None:
        self.graph = fx.Graph()
        self.weights = weights
        self.origins = origins
        self.nodes: dict[Circuit, fx.Node] = {}
        self.current: Circuit | None = None
        self._attributes: dict[str, fx.Node] = {}
        self._sizes: dict[str, fx.Node] = {}
        taken = set[str]()
        for symbol in inputs:
            node = self.graph.placeholder(unused(identifier(symbol.name), taken))
            taken.add(str(node.target))
            node.meta["origin"] = symbol.name
            self.nodes[symbol] = node
        self._inputs = list(inputs)

    def run(self, roots: Sequence[Circuit]) -> fx.GraphModule:
        for node in self._needed(roots):
            if node not in self.nodes:
                self.current = node
                self.nodes[node] = self._lower(node)
        results = tuple(self.value(root) for root in roots)
        self.graph.output(results[0] if len(results) == 1 else results)
        self.graph.eliminate_dead_code()
        root = torch.nn.Module()
        self.weights.register(root)
        module = fx.GraphModule(root, self.graph, class_name="Circuit")  # takes over what the graph reads
        module.graph.lint()
        return module.eval()

    def _needed(self, roots: Sequence[Circuit]) -> list[Circuit]:
        """The nodes to lower, in order. Constants, and views of them, are made when a rule asks for them."""
        return [node for node in postorder(*roots) if self.weights.value(node) is None]

    def _lower(self, node: Circuit) -> fx.Node:
        rule = RULES.get(type(node))
        if rule is None:
            raise UnsupportedError(f"fx has no rule for {node.kind} ({node!r})", hint="add it to RULES")
        try:
            return rule(self, node, ())
        except TapeoutError:
            raise
        except (RuntimeError, ValueError, TypeError) as error:
            raise LoweringError(
                f"lowering {self.name_of(node)} ({node!r}) to fx failed: {error}",
                hint="report it with the circuit's text",
            ) from error

    # -- building

    def name_of(self, node: Circuit) -> str:
        kind = type(node.spec).__name__ if isinstance(node, GeneralFunction) else node.kind
        return self.origins.get(node) or kind.lower()

    def value(self, node: Circuit) -> fx.Node:
        """The graph's node for a circuit's node."""
        if node not in self.nodes:
            constant = self.weights.value(node)
            if constant is None:
                raise LoweringError(f"{node!r} was not lowered before its reader", hint="report it")
            self.nodes[node] = self.constant(constant, node)
        return self.nodes[node]

    def constant(self, value: torch.Tensor, node: Circuit) -> fx.Node:
        """The graph's node for a constant tensor, called after the array that it is made of."""
        source = node
        while source.children:
            source = source.children[0]
        attribute = self.weights.add(value, self.origins.get(source) or "constant")
        if attribute not in self._attributes:
            self._attributes[attribute] = self.graph.create_node("get_attr", attribute, name=attribute)
        return self._attributes[attribute]

    def positions(self, values: torch.Tensor) -> fx.Node:
        """The graph's node for constant positions along an axis; equal ones are held once."""
        values = values.to(self.weights.device) if self.weights.device is not None else values
        attribute = self.weights.add(values, "positions", "positions " + ",".join(map(str, values.tolist())))
        if attribute not in self._attributes:
            self._attributes[attribute] = self.graph.create_node("get_attr", attribute, name=attribute)
        return self._attributes[attribute]

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


# -- kinds


def _scalar(low: Lowering, node: Scalar, _: Args) -> fx.Node:
    value = torch.full((), node.value, dtype=low.weights.dtype, device=low.weights.device)
    attribute = low.constant(value, node)
    if not node.shape:
        return attribute
    return low.call(torch.broadcast_to, attribute, tuple(low.size(size) for size in node.shape))


def _symbol(low: Lowering, node: Symbol, _: Args) -> fx.Node:
    raise LoweringError(f"{node!r} is free and no input", hint="name it in `inputs`, or bind it")


def _add(low: Lowering, node: Add, _: Args) -> fx.Node:
    if not node.children:
        return _scalar(low, Scalar(0.0, node.shape), ())
    ordered = sorted(node.children, key=lambda child: (isinstance(child, Scalar), child.shape != node.shape))
    total = low.value(ordered[0])
    if len(ordered) == 1:
        return low.call(torch.broadcast_to, total, tuple(low.size(size) for size in node.shape))
    for child in ordered[1:]:
        number = child.value if isinstance(child, Scalar) and not child.shape else None
        total = low.call(operator.add, total, low.value(child) if number is None else number)
    return total


def _einsum(low: Lowering, node: Einsum, _: Args) -> fx.Node:
    factor = 1.0
    operands: list[Operand] = []
    sizes: dict[int, Size] = {}
    for child, axes in node.args:
        if isinstance(child, Scalar) and not axes:
            factor *= child.value
        else:
            operands.append((low.value(child), axes))
            sizes.update(zip(axes, child.shape, strict=True))
    if not operands:
        return _scalar(low, Scalar(factor, node.shape), ())
    product = _product_of(low, operands, node.out_axes, sizes)
    return product if factor == 1.0 else low.call(operator.mul, product, factor)


def _product_of(low: Lowering, operands: list[Operand], out: Axes, sizes: Mapping[int, Size]) -> fx.Node:
    distinct = all(len(set(axes)) == len(axes) for axes in (*(axes for _, axes in operands), out))
    reduced = {axis for _, axes in operands for axis in axes} - set(out)
    if not distinct:
        return _diagonal_einsum(low, operands, out, sizes)
    if not reduced:
        return _elementwise_product(low, operands, out)
    if len(operands) == 1:
        value, axes = operands[0]
        total = low.call(torch.sum, value, [i for i, axis in enumerate(axes) if axis in reduced])
        kept = [axis for axis in axes if axis not in reduced]
        return low.permute(total, [kept.index(axis) for axis in out])
    if len(operands) == 2:
        return low.call(torch.einsum, _einsum_text(operands, out), *(value for value, _ in operands))
    return _in_pairs(low, operands, out, sizes)


def _einsum_text(operands: list[Operand], out: Axes) -> str:
    number = {axis: i for i, axis in enumerate(dict.fromkeys(axis for _, axes in operands for axis in axes))}
    if len(number) > 52:
        raise UnsupportedError(f"an einsum of {len(number)} axes", hint="torch.einsum has letters for 52")
    return write_einsum(
        tuple(tuple(number[axis] for axis in axes) for _, axes in operands), tuple(number[axis] for axis in out)
    )


def _in_pairs(low: Lowering, operands: list[Operand], out: Axes, sizes: Mapping[int, Size]) -> fx.Node:
    """A product of many operands two at a time, in the cheapest order.

    torch would choose the order anew at each call, TorchScript goes from left to right, and Inductor cannot
    choose while the batch has no size.
    """
    guess = {axis: size if isinstance(size, int) else _GUESSED_BATCH for axis, size in sizes.items()}
    shapes = [tuple(guess[axis] for axis in axes) for _, axes in operands]
    path, _ = contract_path(_einsum_text(operands, out), *shapes, shapes=True)
    left = list(operands)
    for step in path[:-1]:
        chosen = [left.pop(i) for i in sorted(step, reverse=True)][::-1]
        needed = set(out).union(*(axes for _, axes in left))
        seen = dict.fromkeys(axis for _, axes in chosen for axis in axes)
        kept = tuple([axis for axis in out if axis in seen] + [axis for axis in seen if axis in needed - set(out)])
        left.append((_product_of(low, chosen, kept, sizes), kept))
    return _product_of(low, left, out, sizes)


def _elementwise_product(low: Lowering, operands: list[Operand], out: Axes) -> fx.Node:
    factors = [_aligned(low, value, axes, out) for value, axes in operands]
    product = factors[0]
    for factor in factors[1:]:
        product = low.call(operator.mul, product, factor)
    return product


def _aligned(low: Lowering, value: fx.Node, axes: Axes, out: Axes) -> fx.Node:
    """The operand with its axes in the order of the result and size 1 where it lacks one (leading ones left out)."""
    value = low.permute(value, [axes.index(axis) for axis in out if axis in axes])
    started = False
    for i, axis in enumerate(out):
        if axis in axes:
            started = True
        elif started:
            value = low.call(torch.unsqueeze, value, i - len(out) if i == len(out) - 1 else i - _leading(axes, out))
    return value


def _leading(axes: Axes, out: Axes) -> int:
    """How many axes of the result come before the operand's first."""
    return next((i for i, axis in enumerate(out) if axis in axes), len(out))


def _diagonal_einsum(low: Lowering, operands: list[Operand], out: Axes, sizes: Mapping[int, Size]) -> fx.Node:
    plain: list[Operand] = []
    for value, axes in operands:
        while len(set(axes)) < len(axes):
            twice = next(axis for axis in axes if axes.count(axis) > 1)
            first, second = [i for i, axis in enumerate(axes) if axis == twice][:2]
            value = low.call(torch.diagonal, value, 0, first, second)
            axes = (*(axis for i, axis in enumerate(axes) if i not in (first, second)), twice)
        plain.append((value, axes))
    unique = tuple(dict.fromkeys(out))
    value = _product_of(low, plain, unique, sizes)
    have = list(unique)
    for axis in unique:
        for _ in range(out.count(axis) - 1):
            last = [i for i, each in enumerate(have) if i != have.index(axis)] + [have.index(axis)]
            value = low.call(torch.diag_embed, low.permute(value, last), 0, -2, -1)
            have = [*(have[i] for i in last), axis]
    positions: dict[int, list[int]] = {}
    for i, axis in enumerate(have):
        positions.setdefault(axis, []).append(i)
    return low.permute(value, [positions[axis].pop(0) for axis in out])


def _rearrange(low: Lowering, node: Rearrange, _: Args) -> fx.Node:
    spec, child = node.spec, node.children[0]
    sizes = spec.sizes(child.shape)
    before = [number for group in spec.input_ints for number in group]
    after = [number for group in spec.output_ints for number in group]
    left = [number for number in before if number in after]
    value = low.value(child)
    value = low.reshape(value, child.shape, tuple(sizes[number] for number in left))
    value = low.permute(value, [left.index(number) for number in after if number in left])
    new = [i for i, number in enumerate(after) if number not in left]
    for i in new:
        value = low.call(torch.unsqueeze, value, i)
    if any(sizes[after[i]] != 1 for i in new):
        value = low.call(torch.broadcast_to, value, tuple(low.size(sizes[number]) for number in after))
    return low.reshape(value, tuple(sizes[number] for number in after), node.shape)


def _index(low: Lowering, node: Index, _: Args) -> fx.Node:
    value = low.value(node.children[0])
    axis = 0
    for item, size in zip(node.axis_indices, node.children[0].shape, strict=True):
        if isinstance(item, int):
            value = low.call(torch.select, value, axis, item)
            continue
        if isinstance(item, Picks):
            positions = item.values % int(size)  # type: ignore[arg-type]
            value = low.call(torch.index_select, value, axis, low.positions(positions))
        elif isinstance(item, Span) and not item.is_full:
            start, stop = item.bounds(int(size))  # type: ignore[arg-type]
            value = low.call(torch.narrow, value, axis, start, stop - start)
        axis += 1
    return value


def _concat(low: Lowering, node: Concat, _: Args) -> fx.Node:
    return low.call(torch.cat, [low.value(child) for child in node.children], node.axis)


def _scatter(low: Lowering, node: Scatter, _: Args) -> fx.Node:
    """Zeros joined to the node on both sides for slices; index_copy into zeros for tensors."""
    value = low.value(node.children[0])
    shape = list(node.children[0].shape)
    for axis, (item, size) in enumerate(zip(node.axis_indices, node.attributes[1], strict=True)):
        if isinstance(item, int):
            value = low.call(torch.unsqueeze, value, axis)
            shape.insert(axis, 1)
        if isinstance(item, Span) and item.is_full:
            continue
        positions = _positions(item, int(size))
        shape[axis] = size
        zeros = low.call(
            torch.zeros, tuple(low.size(s) for s in shape), dtype=low.weights.dtype, device=low.weights.device
        )
        value = low.call(torch.index_copy, zeros, axis, low.positions(positions), value)
    return value


def _positions(item: int | Span | Picks, size: int) -> torch.Tensor:
    if isinstance(item, Picks):
        return item.values % size
    return torch.arange(*item.bounds(size)) if isinstance(item, Span) else torch.tensor([item % size])


def _pass_on(low: Lowering, node: Circuit, _: Args) -> fx.Node:
    return low.value(node.children[0])


def _function(low: Lowering, node: GeneralFunction, _: Args) -> fx.Node:
    spec = node.spec
    rule = FUNCTION_RULES.get(spec.name) or FUNCTION_RULES.get(type(spec))
    if rule is None:
        raise UnsupportedError(f"fx has no rule for the function {spec.name}", hint="add it to backends/fx/lower.py")
    return rule(low, node, [low.value(child) for child in node.children if not _taken_as_tensor(spec, node, child)])


def _taken_as_tensor(spec: object, node: GeneralFunction, child: Circuit) -> bool:
    return isinstance(spec, Linear) and child is not node.children[0]


@dataclass(frozen=True, slots=True)
class Refused:
    """The rule of what is not lowered, and why."""

    reason: str

    def __call__(self, low: Lowering, node: Circuit, _: Args) -> fx.Node:
        raise UnsupportedError(f"fx cannot lower {node!r}: {self.reason}", hint=self.reason)


RULES: dict[type[Circuit], Rule] = {
    Array: Refused("an Array is a constant and no call"),
    Scalar: _scalar,
    Symbol: _symbol,
    Add: _add,
    Einsum: _einsum,
    Rearrange: _rearrange,
    Index: _index,
    Concat: _concat,
    Scatter: _scatter,
    GeneralFunction: _function,
    Tag: _pass_on,
    SetSymbolicShape: _pass_on,
    Module: Refused("modules are inlined before lowering"),
    DiscreteVar: Refused("sample random variables first"),
}
"""For every kind its rule, or why there is none."""


# -- functions


def _call(function: Callable[..., Any], **kwargs: Any) -> Rule:
    return lambda low, node, args: low.call(function, *args, **kwargs)


def _wide(function: Callable[..., Any], **kwargs: Any) -> Rule:
    """Computed in float32 where the graph is in a narrower dtype."""

    def rule(low: Lowering, node: GeneralFunction, args: Args) -> fx.Node:
        if low.weights.dtype.itemsize >= 4:
            return low.call(function, *args, **kwargs)
        return low.method("to", low.call(function, low.method("float", args[0]), **kwargs), low.weights.dtype)

    return rule


def _last_dim_size(low: Lowering, node: GeneralFunction, _: Args) -> fx.Node:
    size = node.children[0].shape[-1]
    return _scalar(low, Scalar(float(int(size)), node.shape), ())  # type: ignore[arg-type]


def _step(low: Lowering, node: GeneralFunction, args: Args) -> fx.Node:
    return low.method("to", low.call(operator.gt, args[0], 0), low.weights.dtype)


def _gaussian_pdf(low: Lowering, node: GeneralFunction, args: Args) -> fx.Node:
    square = low.call(operator.mul, args[0], args[0])
    return low.call(operator.mul, low.call(torch.exp, low.call(operator.mul, square, -0.5)), 0.3989422804014327)


def _rotate_half(low: Lowering, node: GeneralFunction, args: Args) -> fx.Node:
    half = int(node.shape[-1]) // 2  # type: ignore[arg-type]
    first = low.call(torch.narrow, args[0], -1, 0, half)
    second = low.call(torch.narrow, args[0], -1, half, half)
    return low.call(torch.cat, [low.call(operator.neg, second), first], -1)


def _log_exp_p_1(low: Lowering, node: GeneralFunction, args: Args) -> fx.Node:
    return low.call(torch.logaddexp, args[0], low.call(torch.zeros_like, args[0]))


def _gen_index(low: Lowering, node: GeneralFunction, args: Args) -> fx.Node:
    spec: Any = node.spec
    x, index = node.children
    axis = spec._axis(x.shape, index.shape)
    if spec.batch_x and spec.batch_index and index.rank:
        return _gather(low, node, args, axis)
    if axis == 0 and x.rank == 2 and index.rank and isinstance(low.weights.value(x), torch.Tensor):
        return low.call(F.embedding, args[1], args[0])
    flat = args[1] if index.rank == 1 else low.call(torch.reshape, args[1], (-1,))
    picked = low.call(torch.index_select, args[0], axis, flat)
    if index.rank != 1:
        whole = x.shape[:axis] + index.shape + x.shape[axis + 1 :]
        picked = low.call(torch.reshape, picked, tuple(low.shape(whole)))
    if spec.batch_index and axis and index.rank:
        order = [*range(axis, axis + index.rank), *range(axis), *range(axis + index.rank, x.rank - 1 + index.rank)]
        picked = low.permute(picked, order)
    return picked


def _gather(low: Lowering, node: GeneralFunction, args: Args, axis: int) -> fx.Node:
    x, index = node.children
    where = args[1]
    for _ in range(x.rank - index.rank):
        where = low.call(torch.unsqueeze, where, -1)
    sizes = [1 if i == axis else -1 if i < index.rank else size for i, size in enumerate(x.shape)]
    where = low.method("expand", where, *(size if isinstance(size, int) else low.size(size) for size in sizes))
    return low.call(torch.squeeze, low.call(torch.gather, args[0], axis, where), axis)


def _cast(low: Lowering, node: GeneralFunction, args: Args) -> fx.Node:
    """Floating values all have the dtype that was compiled for, whatever they are cast to."""
    before, after = node.children[0].torch_dtype, node.torch_dtype
    if after is None or after is before:
        return args[0]
    if after.is_floating_point:
        return args[0] if before is None or before.is_floating_point else low.method("to", args[0], low.weights.dtype)
    return low.method("to", args[0], after)


def _linear(low: Lowering, node: GeneralFunction, args: Args) -> fx.Node:
    spec: Any = node.spec
    x, weight, *bias = node.children
    shared = [axis for axis in spec.x_axes if axis in spec.weight_axes]
    rows = [axis for axis in spec.x_axes if axis not in shared]
    columns = [axis for axis in spec.out_axes if axis not in spec.x_axes]
    sizes: dict[int, Size] = dict(zip(spec.x_axes, x.shape, strict=True))
    sizes |= zip(spec.weight_axes, weight.shape, strict=True)
    shared = _memory_order(low, weight, spec.weight_axes, shared)
    value = low.permute(args[0], [spec.x_axes.index(axis) for axis in rows + shared])
    inner = [sizes[axis] for axis in shared]
    if len(shared) > 1:
        value = low.call(torch.flatten, value, len(rows))
    matrix = _tensor(low, weight).permute([spec.weight_axes.index(axis) for axis in columns + shared])
    width = [int(sizes[axis]) for axis in columns]  # type: ignore[arg-type]
    flat = low.weights.pack(matrix, [_count(width), _count(inner)])
    shift = None
    if bias and spec.bias_axes is not None:
        own = [axis for axis in columns if axis in spec.bias_axes]
        shift = _tensor(low, bias[0]).permute([spec.bias_axes.index(axis) for axis in own])
        shift = shift.reshape([size if axis in own else 1 for axis, size in zip(columns, width, strict=True)])
        shift = low.weights.pack(shift.expand(width), [_count(width)])
    out = low.call(F.linear, value, low.constant(flat, weight), None if shift is None else low.constant(shift, bias[0]))
    if len(columns) != 1:
        out = low.call(torch.unflatten, out, -1, tuple(width)) if columns else low.call(torch.squeeze, out, -1)
    return low.permute(out, [(rows + columns).index(axis) for axis in spec.out_axes])


def _memory_order(low: Lowering, weight: Circuit, axes: Axes, shared: list[int]) -> list[int]:
    """The contracted axes in the order in which they lie in the weight's memory: then merging them is a view."""
    strides = dict(zip(axes, _tensor(low, weight).stride(), strict=True))
    return sorted(shared, key=lambda axis: -strides[axis])


def _tensor(low: Lowering, node: Circuit) -> torch.Tensor:
    value = low.weights.copied(node)
    if value is None:
        raise LoweringError(f"the weight {node!r} is no constant", hint="kernels take constants as weights")
    return value


def _count(sizes: Sequence[Any]) -> int:
    out = 1
    for size in sizes:
        out *= int(size)
    return out


def _layer_norm(low: Lowering, node: GeneralFunction, args: Args) -> fx.Node:
    size = node.shape[-1]
    return low.call(F.layer_norm, args[0], (size,), args[1], args[2], node.spec.eps)  # type: ignore[attr-defined]


def _rms_norm(low: Lowering, node: GeneralFunction, args: Args) -> fx.Node:
    return low.call(F.rms_norm, args[0], (node.shape[-1],), args[1], node.spec.eps)  # type: ignore[attr-defined]


def _attention(low: Lowering, node: GeneralFunction, args: Args) -> fx.Node:
    spec: Any = node.spec
    q, k, v, *mask = args
    allowed = low.call(operator.gt, mask[0], 0) if mask else None
    return low.call(F.scaled_dot_product_attention, q, k, v, attn_mask=allowed, is_causal=spec.causal, scale=spec.scale)


FUNCTION_RULES: dict[object, Rule] = {
    "sin": _call(torch.sin),
    "cos": _call(torch.cos),
    "sigmoid": _call(torch.sigmoid),
    "tanh": _call(torch.tanh),
    "rsqrt": _wide(torch.rsqrt),
    "gelu": _call(F.gelu),
    "gelu_new": _call(F.gelu, approximate="tanh"),
    "silu": _call(F.silu),
    "relu": _call(torch.relu),
    "step": _step,
    "reciprocal": _call(torch.reciprocal),
    "log_exp_p_1": _log_exp_p_1,
    "gaussian_pdf": _gaussian_pdf,
    "gaussian_cdf": _call(torch.special.ndtr),
    "abs": _call(torch.abs),
    "exp": _call(torch.exp),
    "log": _call(torch.log),
    "logit": _call(torch.logit),
    "softmax": _wide(torch.softmax, dim=-1),
    "log_softmax": _wide(torch.log_softmax, dim=-1),
    "rotate_half": _rotate_half,
    "min": _call(torch.amin, dim=-1),
    "max": _call(torch.amax, dim=-1),
    "last_dim_size": _last_dim_size,
    "pow": _call(torch.pow),
    "minimum": _call(torch.minimum),
    "maximum": _call(torch.maximum),
    GenIndex: _gen_index,
    Cast: _cast,
    Linear: _linear,
    LayerNorm: _layer_norm,
    RMSNorm: _rms_norm,
    Attention: _attention,
}
"""For every function, by name or by class, its rule."""
