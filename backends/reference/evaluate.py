"""Evaluation, node by node.

Stored floating constants are promoted exactly to the dtype asked for; integers stay int64. What has no
dtype of its own (Scalars, and what is made of them alone) is computed in float64 and takes the dtype
of the first node that has one. A value is freed as soon as its last reader has run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from math import prod

import torch

from tapeout.backends.reference.context import Context, as_dtype_exactly
from tapeout.backends.reference.einsum import einsum
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
from tapeout.ir.axis_index import apply_index
from tapeout.ir.dtypes import as_dtype, dtype_name
from tapeout.ir.errors import (
    ModuleBindingError,
    ShapeError,
    TapeoutError,
    TypeMismatchError,
    UnsupportedError,
)
from tapeout.ir.fluent.methods import set_evaluator
from tapeout.ir.nodes.functions import Cast, GenIndex
from tapeout.ir.nodes.rearrange import apply_rearrange
from tapeout.ir.sizes import format_shape, is_concrete
from tapeout.ir.trampoline import memoised

Tensors = Sequence[torch.Tensor]


def _array(node: Array, _: Tensors, context: Context) -> torch.Tensor:
    value = node.value
    return value.to(context.dtype) if context.dtype is not None and value.is_floating_point() else value


def _scalar(node: Scalar, _: Tensors, context: Context) -> torch.Tensor:
    number = torch.tensor(node.value, dtype=context.dtype_of(node), device=context.device)
    return number.expand(_concrete(node))


def _einsum(node: Einsum, tensors: Tensors, context: Context) -> torch.Tensor:
    if not tensors:
        return torch.ones((), dtype=context.dtype_of(node), device=context.device)
    return einsum(context.alike(node, tensors), node.in_axes, node.out_axes)


def _add(node: Add, tensors: Tensors, context: Context) -> torch.Tensor:
    if not tensors:
        return torch.zeros((), dtype=context.dtype_of(node), device=context.device)
    first, *rest = context.alike(node, tensors)
    total = first.expand(_concrete(node))
    for tensor in rest:
        total = total + tensor
    return total


def _rearrange(node: Rearrange, tensors: Tensors, _: Context) -> torch.Tensor:
    _concrete(node)
    return apply_rearrange(tensors[0], node.spec)


def _index(node: Index, tensors: Tensors, _: Context) -> torch.Tensor:
    return apply_index(tensors[0], node.axis_indices)


def _concat(node: Concat, tensors: Tensors, context: Context) -> torch.Tensor:
    return torch.cat(context.alike(node, tensors), dim=node.axis)


def _scatter(node: Scatter, tensors: Tensors, _: Context) -> torch.Tensor:
    where = torch.arange(prod(_concrete(node)), device=tensors[0].device).reshape(_concrete(node))
    result = tensors[0].new_zeros(where.numel())
    result[apply_index(where, node.axis_indices).reshape(-1)] = tensors[0].reshape(-1)
    return result.reshape(_concrete(node))


def _function(node: GeneralFunction, tensors: Tensors, context: Context) -> torch.Tensor:
    spec = node.spec
    if isinstance(spec, GenIndex):
        x, index = tensors
        return spec.apply(x, as_dtype_exactly(index, torch.int64, node.children[1]))
    if isinstance(spec, Cast):
        result = spec.apply(*tensors)
        return tensors[0].to(result.device, context.dtype_of(node)) if result.is_floating_point() else result
    return spec.apply(*context.alike(node, tensors))


def _child(node: Circuit, tensors: Tensors, _: Context) -> torch.Tensor:
    return tensors[0]


def _symbol(node: Symbol, _: Tensors, __: Context) -> torch.Tensor:
    raise ModuleBindingError(
        f"{node!r} ({node.uuid}) is unbound and has no value",
        hint=f"replace it, circuit.update({node.name!r}, lambda _: Array(...)), or bind it with module_new_bind",
    )


def _variable(node: DiscreteVar, _: Tensors, __: Context) -> torch.Tensor:
    raise UnsupportedError(
        f"{node!r} is a random variable and has no one value",
        hint="sample it first: Sampler(RunDiscreteVarAllSpec([group])).sample(circuit).evaluate()",
    )


_RULES: dict[type[Circuit], Callable[..., torch.Tensor]] = {
    Array: _array,
    Scalar: _scalar,
    Symbol: _symbol,
    Einsum: _einsum,
    Add: _add,
    Rearrange: _rearrange,
    Index: _index,
    Concat: _concat,
    Scatter: _scatter,
    GeneralFunction: _function,
    Tag: _child,
    SetSymbolicShape: _child,
    DiscreteVar: _variable,
}


def evaluate(circuit: Circuit, dtype: torch.dtype | str | None = None) -> torch.Tensor:
    """The value of a circuit.

    Args:
        circuit: without free symbols and random variables.
        dtype: the floating dtype to compute in; None for the constants' own.

    Raises:
        ModuleBindingError: if a symbol is unbound.
        UnsupportedError: if there is a random variable in it.
        DataError: if an index is out of range.
    """
    return evaluate_many([circuit], dtype)[0]


def evaluate_many(
    circuits: Sequence[Circuit],
    dtype: torch.dtype | str | None = None,
    values: Mapping[Circuit, torch.Tensor] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[torch.Tensor]:
    """The values of several circuits; what they share is computed once.

    Args:
        circuits: the circuits.
        dtype: see `evaluate`.
        values: values for some of their nodes (symbols, say), which are then not computed;
            nor is what only they read.
        progress: called with the number of nodes done and the number of all.

    Raises:
        See `evaluate`.
    """
    given = dict(values or {})
    inlined = _inlined(circuits, given)
    order = _order(inlined, given)
    stored = [node.value for node in order if isinstance(node, Array)] + list(given.values())
    context = Context(None if dtype is None else as_dtype(dtype), stored)
    known = {node: _checked(node, value, context) for node, value in given.items()}
    readers = Counter(child for node in order for child in node.children)
    readers.update(inlined)
    with torch.no_grad():
        for done, node in enumerate(order):
            known[node] = _value(node, [known[child] for child in node.children], context)
            for child in node.children:
                readers[child] -= 1
                if readers[child] == 0:
                    del known[child]
            if progress is not None:
                progress(done + 1, len(order))
        return [
            known[circuit].to(context.result_dtype) if circuit.torch_dtype is None else known[circuit]
            for circuit in inlined
        ]


def _order(roots: Sequence[Circuit], given: Collection[Circuit]) -> list[Circuit]:
    """The nodes to compute, children first."""
    needed, stack = set[Circuit](), list(roots)
    while stack:
        node = stack.pop()
        if node not in needed and node not in given:
            needed.add(node)
            stack.extend(node.children)
    return [node for node in postorder(*roots) if node in needed]


def _checked(node: Circuit, value: torch.Tensor, context: Context) -> torch.Tensor:
    """A value from outside, if it is one that the node can have."""
    fits = len(value.shape) == node.rank and all(
        size == given for size, given in zip(node.shape, value.shape, strict=True) if isinstance(size, int)
    )
    if not fits:
        raise ShapeError(
            f"the value given for {node!r} has shape {list(value.shape)}",
            hint=f"give a tensor of shape {format_shape(node.shape)}",
        )
    promoted = context.dtype is not None and value.is_floating_point()
    if node.torch_dtype not in (None, value.dtype) and not (promoted and node.torch_dtype.is_floating_point):
        raise TypeMismatchError(
            f"the value given for {node!r} has dtype {dtype_name(value.dtype)}", hint=f"give {node.dtype}"
        )
    return value.to(context.dtype) if promoted else value


def _inlined(circuits: Sequence[Circuit], keep: Collection[Circuit]) -> list[Circuit]:
    """The circuits with their modules substituted: a call means its body with the arguments in it."""

    def step(node: Circuit) -> Generator[Circuit, Circuit, Circuit]:
        if node in keep:
            return node
        if isinstance(node, Module):
            return (yield node.substitute())
        children = []
        for child in node.children:
            children.append((yield child))
        return node.with_children(tuple(children))

    return list(map(memoised(step), circuits))


def _value(node: Circuit, tensors: Tensors, context: Context) -> torch.Tensor:
    try:
        value = _RULES[type(node)](node, tensors, context)
    except TapeoutError:
        raise
    except (RuntimeError, IndexError) as error:
        raise TypeMismatchError(
            f"evaluating {node!r} failed: {error}",
            facts=[
                f"{child!r} of shape {list(t.shape)}, {t.dtype}, {t.device}"
                for child, t in zip(node.children, tensors, strict=True)
            ],
            hint="are all constants on one device (cast_circuit moves them) and of dtypes that mix?",
        ) from error
    return value


def _concrete(node: Circuit) -> tuple[int, ...]:
    if not is_concrete(node.shape):
        raise UnsupportedError(
            f"{node!r} has the symbolic shape {format_shape(node.shape)}",
            hint="bind its symbols to arguments of known size",
        )
    return node.shape  # type: ignore[return-value]


set_evaluator(evaluate)
