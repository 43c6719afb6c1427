"""Evaluation, node by node.

Stored floating constants are promoted exactly to the dtype asked for; integers stay int64. A value is
freed as soon as its last reader has run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import opt_einsum
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
    postorder,
)
from tapeout.ir.axis_index import apply_index
from tapeout.ir.dtypes import as_dtype
from tapeout.ir.errors import ModuleBindingError, TapeoutError, TypeMismatchError, UnsupportedError
from tapeout.ir.methods import set_evaluator
from tapeout.ir.sizes import format_shape, is_concrete

Tensors = Sequence[torch.Tensor]


class _Context:
    """What a rule needs beside its children's values: the dtype and device of numbers."""

    def __init__(self, dtype: torch.dtype | None, nodes: Sequence[Circuit]) -> None:
        self.dtype = dtype
        arrays = [node.value for node in nodes if isinstance(node, Array)]
        self.device = arrays[0].device if arrays else torch.device("cpu")
        floats = [value.dtype for value in arrays if value.is_floating_point()]
        self.number_dtype = dtype or (floats[0] if floats else torch.get_default_dtype())


def _array(node: Array, _: Tensors, context: _Context) -> torch.Tensor:
    value = node.value
    return value.to(context.dtype) if context.dtype is not None and value.is_floating_point() else value


def _scalar(node: Scalar, _: Tensors, context: _Context) -> torch.Tensor:
    number = torch.tensor(node.value, dtype=context.number_dtype, device=context.device)
    return number.expand(_concrete(node))


def _einsum(node: Einsum, tensors: Tensors, context: _Context) -> torch.Tensor:
    if not tensors:
        return torch.ones((), dtype=context.number_dtype, device=context.device)
    tensors = _same_dtype(tensors)
    out = tuple(dict.fromkeys(node.out_axes))
    operands = [part for tensor, axes in zip(tensors, node.in_axes, strict=True) for part in (tensor, axes)]
    if len(tensors) == 1:
        result = _sum_one(tensors[0], node.in_axes[0], out)
    else:
        result = opt_einsum.contract(*_diagonals(operands), out, backend="torch")
    return _make_diagonal(result, out, node.out_axes) if len(out) < len(node.out_axes) else result


def _diagonals(operands: list[Any]) -> list[Any]:
    for i in range(0, len(operands), 2):
        tensor, axes = operands[i], operands[i + 1]
        operands[i], operands[i + 1] = _take_diagonal(tensor, axes)
    return operands


def _take_diagonal(tensor: torch.Tensor, axes: tuple[int, ...]) -> tuple[torch.Tensor, tuple[int, ...]]:
    while len(set(axes)) < len(axes):
        twice = next(axis for axis in axes if axes.count(axis) > 1)
        first, second = [i for i, axis in enumerate(axes) if axis == twice][:2]
        tensor = tensor.diagonal(dim1=first, dim2=second)  # the diagonal becomes the last axis
        axes = tuple(axis for i, axis in enumerate(axes) if i not in (first, second)) + (twice,)
    return tensor, axes


def _sum_one(tensor: torch.Tensor, axes: tuple[int, ...], out: tuple[int, ...]) -> torch.Tensor:
    tensor, axes = _take_diagonal(tensor, axes)
    gone = [i for i, axis in enumerate(axes) if axis not in out]
    if gone:
        tensor = tensor.sum(gone)
    kept = [axis for axis in axes if axis in out]
    return tensor.permute([kept.index(axis) for axis in out])


def _make_diagonal(tensor: torch.Tensor, axes: tuple[int, ...], out_axes: tuple[int, ...]) -> torch.Tensor:
    sizes = dict(zip(axes, tensor.shape, strict=True))
    result = tensor.new_zeros([sizes[axis] for axis in out_axes])
    view, view_axes = _take_diagonal(result, out_axes)
    view.copy_(tensor.permute([axes.index(axis) for axis in view_axes]))
    return result


def _add(node: Add, tensors: Tensors, context: _Context) -> torch.Tensor:
    if not tensors:
        return torch.zeros((), dtype=context.number_dtype, device=context.device)
    first, *rest = _same_dtype(tensors)
    total = first.expand(_concrete(node))
    for tensor in rest:
        total = total + tensor
    return total


def _rearrange(node: Rearrange, tensors: Tensors, _: _Context) -> torch.Tensor:
    spec, tensor = node.spec, tensors[0]
    sizes = [int(size) for size in spec.sizes(tuple(tensor.shape))]  # type: ignore[arg-type]
    elementary = [number for group in spec.input_ints for number in group]
    flat = tensor.reshape([sizes[number] for number in elementary])
    kept = [number for group in spec.output_ints for number in group]
    present = [number for number in kept if number in elementary]
    gone = [i for i, number in enumerate(elementary) if number not in kept]
    flat = flat.squeeze(gone) if gone else flat
    order = [number for number in elementary if number in kept]
    flat = flat.permute([order.index(number) for number in present])
    for i, number in enumerate(kept):
        if number not in elementary:
            flat = flat.unsqueeze(i)
    flat = flat.expand([sizes[number] for number in kept])
    return flat.reshape(_concrete(node))


def _index(node: Index, tensors: Tensors, _: _Context) -> torch.Tensor:
    return apply_index(tensors[0], node.axis_indices)


def _concat(node: Concat, tensors: Tensors, _: _Context) -> torch.Tensor:
    return torch.cat(_same_dtype(tensors), dim=node.axis)


def _scatter(node: Scatter, tensors: Tensors, _: _Context) -> torch.Tensor:
    where = torch.arange(_elements(node), device=tensors[0].device).reshape(_concrete(node))
    result = tensors[0].new_zeros(_elements(node))
    result[apply_index(where, node.axis_indices).reshape(-1)] = tensors[0].reshape(-1)
    return result.reshape(_concrete(node))


def _function(node: GeneralFunction, tensors: Tensors, context: _Context) -> torch.Tensor:
    result = node.spec.apply(*tensors)
    return result.to(context.dtype) if context.dtype is not None and result.is_floating_point() else result


def _child(node: Circuit, tensors: Tensors, _: _Context) -> torch.Tensor:
    return tensors[0]


def _symbol(node: Symbol, _: Tensors, __: _Context) -> torch.Tensor:
    raise ModuleBindingError(
        f"{node!r} ({node.uuid}) is unbound and has no value",
        hint=f"replace it, circuit.update({node.name!r}, lambda _: Array(...)), or bind it with module_new_bind",
    )


def _variable(node: DiscreteVar, _: Tensors, __: _Context) -> torch.Tensor:
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
        values: values for some of their nodes (symbols, say), which are then not computed.
        progress: called with the number of nodes done and the number of all.

    Raises:
        See `evaluate`.
    """
    inlined = [_inline(circuit, set(values or ())) for circuit in circuits]
    order = list(postorder(*inlined))
    context = _Context(None if dtype is None else as_dtype(dtype), order)
    readers = Counter(child for node in order for child in node.children)
    readers.update(inlined)
    known: dict[Circuit, torch.Tensor] = dict(values or {})
    with torch.no_grad():
        for done, node in enumerate(order):
            if node not in known:
                known[node] = _value(node, [known[child] for child in node.children], context)
            for child in node.children:
                readers[child] -= 1
                if readers[child] == 0:
                    del known[child]
            if progress is not None:
                progress(done + 1, len(order))
        return [known[circuit] for circuit in inlined]


def _inline(circuit: Circuit, keep: set[Circuit]) -> Circuit:
    """The circuit with its modules substituted: a call means its body with the arguments in it."""
    memo: dict[Circuit, Circuit] = {}
    stack = [circuit]
    while stack:
        node = stack[-1]
        if node in memo:
            stack.pop()
            continue
        if node in keep:
            memo[node] = node
            continue
        if isinstance(node, Module):
            body = node.substitute()
            if body not in memo:
                stack.append(body)
                continue
            memo[node] = memo[body]
            continue
        pending = [child for child in node.children if child not in memo]
        if pending:
            stack.extend(pending)
            continue
        memo[node] = node.with_children(tuple(memo[child] for child in node.children))
    return memo[circuit]


def _value(node: Circuit, tensors: Tensors, context: _Context) -> torch.Tensor:
    try:
        value = _RULES[type(node)](node, tensors, context)
    except TapeoutError:
        raise
    except RuntimeError as error:
        raise TypeMismatchError(
            f"evaluating {node!r} failed: {error}",
            facts=[
                f"{child!r} of shape {list(t.shape)}, {t.dtype}, {t.device}"
                for child, t in zip(node.children, tensors, strict=True)
            ],
            hint="are all constants on one device (cast_circuit moves them) and of dtypes that mix?",
        ) from error
    return value


def _same_dtype(tensors: Tensors) -> list[torch.Tensor]:
    """Tensors of one dtype: numbers (scalars and what is made of them alone) take the dtype of the rest."""
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) == 1:
        return list(tensors)
    target = tensors[0].dtype
    for tensor in tensors[1:]:
        target = torch.promote_types(target, tensor.dtype)
    return [tensor.to(target) for tensor in tensors]


def _concrete(node: Circuit) -> tuple[int, ...]:
    if not is_concrete(node.shape):
        raise UnsupportedError(
            f"{node!r} has the symbolic shape {format_shape(node.shape)}",
            hint="bind its symbols to arguments of known size",
        )
    return node.shape  # type: ignore[return-value]


def _elements(node: Circuit) -> int:
    count = 1
    for size in _concrete(node):
        count *= size
    return count


set_evaluator(evaluate)
