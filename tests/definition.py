"""What a circuit means, written a second time: numpy and plain loops over entries, slow and obvious.

It shares nothing with the library but the nodes' fields. A module is a loop over its batch axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import numpy as np

from tapeout.ir import (
    Add,
    Array,
    Circuit,
    Concat,
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
)
from tapeout.ir.axis_index import Picks, Span
from tapeout.ir.nodes.functions import Cast, GenIndex

Values = dict[Circuit, np.ndarray]


def value(circuit: Circuit, symbols: Mapping[Symbol, np.ndarray] | None = None) -> np.ndarray:
    """The value of a circuit, given those of its free symbols."""
    return _value(circuit, dict(symbols or {}))


def _value(node: Circuit, known: Values) -> np.ndarray:
    if node not in known:
        known[node] = _module(node, known) if isinstance(node, Module) else _RULES[type(node)](node, known)
    return known[node]


def _children(node: Circuit, known: Values) -> list[np.ndarray]:
    return [_value(child, known) for child in node.children]


def _module(node: Module, known: Values) -> np.ndarray:
    arguments = [_value(child, known) for child in node.nodes]
    batches = [a.shape[: a.ndim - s.symbol.rank] for a, s in zip(arguments, node.arg_specs, strict=True)]
    batch = max(batches, key=len, default=())
    rows = []
    bound = {spec.symbol for spec in node.arg_specs}
    outer = {key: v for key, v in known.items() if isinstance(key, Symbol) and key not in bound}
    for place in product(*map(range, batch)):
        inner = dict(outer)
        for spec, argument, own in zip(node.arg_specs, arguments, batches, strict=True):
            inner[spec.symbol] = argument[place[len(batch) - len(own) :]]
        rows.append(_value(node.children[0], inner))
    return np.stack(rows).reshape((*batch, *rows[0].shape))


def _einsum(node: Einsum, known: Values) -> np.ndarray:
    operands = _children(node, known)
    sizes = {
        axis: size
        for o, axes in zip(operands, node.in_axes, strict=True)
        for axis, size in zip(axes, o.shape, strict=True)
    }
    summed = sorted(set(sizes) - set(node.out_axes))
    out = np.zeros([sizes[axis] for axis in node.out_axes])
    free = list(dict.fromkeys(node.out_axes))
    for at in product(*(range(sizes[axis]) for axis in free)):
        total = 0.0
        for rest in product(*(range(sizes[axis]) for axis in summed)):
            where = dict(zip([*free, *summed], [*at, *rest], strict=True))
            total += math.prod(
                float(o[tuple(where[a] for a in axes)]) for o, axes in zip(operands, node.in_axes, strict=True)
            )
        place = dict(zip(free, at, strict=True))
        out[tuple(place[axis] for axis in node.out_axes)] = total
    return out


def _add(node: Add, known: Values) -> np.ndarray:
    total: Any = np.zeros(())
    for child in _children(node, known):
        total = total + child
    return np.asarray(total)


def _rearrange(node: Rearrange, known: Values) -> np.ndarray:
    (x,) = _children(node, known)
    spec = node.spec
    sizes = list(spec.int_sizes)
    for group, whole in zip(spec.input_ints, x.shape, strict=True):
        for number in group:
            if sizes[number] is None:
                sizes[number] = whole // math.prod(sizes[n] for n in group if n != number)  # type: ignore[misc]
    used = sorted({n for group in spec.input_ints + spec.output_ints for n in group})

    def position(group: tuple[int, ...], at: Mapping[int, int]) -> int:
        place = 0
        for number in group:
            place = place * int(sizes[number]) + at[number]  # type: ignore[arg-type]
        return place

    out = np.full([math.prod(int(sizes[n]) for n in group) for group in spec.output_ints], np.nan)  # type: ignore[arg-type]
    for entry in product(*(range(int(sizes[n])) for n in used)):  # type: ignore[arg-type]
        at = dict(zip(used, entry, strict=True))
        source, target = (tuple(position(g, at) for g in side) for side in (spec.input_ints, spec.output_ints))
        out[target] = x[source]
    return out


def _positions(index: object, size: int) -> list[int]:
    if isinstance(index, Span):
        return list(range(size))[slice(index.start, index.stop)]
    if isinstance(index, Picks):
        return [i % size for i in index.values.tolist()]
    return [index % size]  # type: ignore[operator]


def _index(node: Index, known: Values) -> np.ndarray:
    (x,) = _children(node, known)
    picked = x[np.ix_(*(_positions(i, s) for i, s in zip(node.axis_indices, x.shape, strict=True)))] if x.ndim else x
    gone = tuple(axis for axis, i in enumerate(node.axis_indices) if isinstance(i, int))
    return picked.squeeze(gone)


def _scatter(node: Scatter, known: Values) -> np.ndarray:
    (x,) = _children(node, known)
    out = np.zeros(node.shape)
    places = [_positions(i, s) for i, s in zip(node.axis_indices, node.shape, strict=True)]  # type: ignore[arg-type]
    if out.ndim == 0:
        return x
    out[np.ix_(*places)] = x.reshape([len(p) for p in places])
    return out


def _concat(node: Concat, known: Values) -> np.ndarray:
    return np.concatenate(_children(node, known), axis=node.axis)


def _gen_index(f: GenIndex, x: np.ndarray, index: np.ndarray) -> np.ndarray:
    if f.batch_x and f.batch_index:
        rows = [np.take(x[at], index[at], axis=f.index_dim) for at in product(*map(range, index.shape))]
        return np.stack(rows).reshape((*index.shape, *rows[0].shape))
    if f.batch_index:
        rows = [np.take(x, index[at], axis=f.index_dim) for at in product(*map(range, index.shape))]
        return np.stack(rows).reshape((*index.shape, *rows[0].shape))
    return np.take(x, index, axis=f.index_dim)


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _halves_turned(x: np.ndarray) -> np.ndarray:
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([-second, first], axis=-1)


def _entrywise(f: Callable[[float], float]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: np.array([f(float(v)) for v in x.ravel()]).reshape(x.shape)


def _normal_cdf(v: float) -> float:
    return 0.5 * math.erfc(-v / math.sqrt(2))


def _gelu_new(v: float) -> float:
    return 0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))


FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "sin": np.sin,
    "cos": np.cos,
    "sigmoid": _entrywise(lambda v: 1 / (1 + math.exp(-v))),
    "tanh": np.tanh,
    "rsqrt": _entrywise(lambda v: 1 / math.sqrt(v)),
    "gelu": _entrywise(lambda v: v * _normal_cdf(v)),
    "gelu_new": _entrywise(_gelu_new),
    "silu": _entrywise(lambda v: v / (1 + math.exp(-v))),
    "relu": _entrywise(lambda v: max(v, 0.0)),
    "step": _entrywise(lambda v: float(v > 0)),
    "reciprocal": _entrywise(lambda v: 1 / v),
    "log_exp_p_1": _entrywise(lambda v: math.log(math.exp(v) + 1)),
    "gaussian_pdf": _entrywise(lambda v: math.exp(-v * v / 2) / math.sqrt(2 * math.pi)),
    "gaussian_cdf": _entrywise(_normal_cdf),
    "abs": np.abs,
    "exp": np.exp,
    "log": np.log,
    "logit": _entrywise(lambda v: math.log(v / (1 - v))),
    "softmax": _softmax,
    "log_softmax": lambda x: np.log(_softmax(x)),
    "rotate_half": _halves_turned,
    "min": lambda x: x.min(-1),
    "max": lambda x: x.max(-1),
    "last_dim_size": lambda x: np.full(x.shape[:-1], float(x.shape[-1])),
    "pow": np.power,
    "minimum": np.minimum,
    "maximum": np.maximum,
}


def _function(node: GeneralFunction, known: Values) -> np.ndarray:
    parts = _children(node, known)
    if isinstance(node.spec, GenIndex):
        return _gen_index(node.spec, *parts)
    if isinstance(node.spec, Cast):
        return parts[0].astype(str(node.spec.output.get_torch_dtype()).removeprefix("torch."))
    return np.asarray(FUNCTIONS[node.spec.name](*parts))


def _first(node: Circuit, known: Values) -> np.ndarray:
    return _value(node.children[0], known)


_RULES: dict[type[Circuit], Callable[..., np.ndarray]] = {
    Array: lambda node, _: node.value.numpy(),
    Scalar: lambda node, _: np.full(node.shape, node.value),
    Einsum: _einsum,
    Add: _add,
    Rearrange: _rearrange,
    Index: _index,
    Scatter: _scatter,
    Concat: _concat,
    GeneralFunction: _function,
    Tag: _first,
    SetSymbolicShape: _first,
}
