"""The inputs of a compiled circuit: which nodes they stand for, and what may be given for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid5

import torch

from tapeout.ir import (
    Array,
    Circuit,
    DiscreteVar,
    GeneralFunction,
    Matcher,
    Module,
    Symbol,
    TorchDeviceDtypeOp,
    nodes_below,
    postorder,
)
from tapeout.ir.dtypes import as_dtype, dtype_name
from tapeout.ir.errors import DataError, MatchError, ModuleBindingError, ShapeError, TypeMismatchError
from tapeout.ir.gc_pause import without_gc
from tapeout.ir.nodes.functions import GenIndex
from tapeout.ir.sizes import BATCH, format_shape, is_concrete
from tapeout.passes.execution import Origins
from tapeout.passes.inline import Inline

_PASS_ON = frozenset(("Index", "Rearrange", "Concat", "Tag", "SetSymbolicShape"))
"""Kinds whose entries are those of their children."""
_NAMESPACE = UUID("0d3a5b58-3c0f-4a39-9b8e-6b7f2f9e4c11")


@dataclass(frozen=True, slots=True)
class Input:
    """A run-time input.

    Attributes:
        name: the argument's name.
        symbol: one row of it [...].
        batched: the same with the batch axis first [BATCH, ...].
        below: for an index, its entries must be less than this; None if it is no index.
    """

    name: str
    symbol: Symbol
    batched: Symbol
    below: int | None

    @property
    def dtype(self) -> torch.dtype:
        return self.batched.torch_dtype or torch.float32

    def to_json(self) -> dict[str, Any]:
        """The input as JSON's types; `from_json` reads them."""
        return {
            "name": self.name,
            "dtype": dtype_name(self.dtype),
            "row_shape": [int(size) for size in self.symbol.shape],  # type: ignore[arg-type]
            "limit": self.below,
            "symbol": str(self.symbol.uuid),
            "batched": str(self.batched.uuid),
        }

    @staticmethod
    def from_json(entry: Mapping[str, Any]) -> Input:
        """The input that `to_json` wrote."""
        shape, dtype = tuple(map(int, entry["row_shape"])), as_dtype(entry["dtype"])
        name, limit = str(entry["name"]), entry["limit"]
        symbol = Symbol(shape, UUID(entry["symbol"]), name, dtype)
        batched = Symbol((BATCH, *shape), UUID(entry["batched"]), name, dtype)
        return Input(name, symbol, batched, None if limit is None else int(limit))


@without_gc
def find_inputs(
    roots: Sequence[Circuit], names: Sequence[str | Circuit], dtype: torch.dtype
) -> tuple[list[Circuit], list[Input]]:
    """The circuits with symbols in the places of the inputs, and the inputs.

    Args:
        roots: the circuits.
        names: names of symbols, arrays or random variables, or these nodes.
        dtype: the dtype of an input that is no index and whose own is undetermined.

    Raises:
        MatchError: if a name matches nothing that can be an input.
        ModuleBindingError: if a free symbol is not among the inputs.
        ShapeError: if an input has symbolic sizes.
    """
    nodes = _input_nodes(roots, names)
    if len(set(nodes)) < len(nodes):
        twice = sorted({node.name for node in nodes if nodes.count(node) > 1})
        raise MatchError(f"inputs are named twice: {', '.join(twice)}", hint="name each once")
    order = list(postorder(*roots))
    constants = next(
        (node.torch_dtype for node in order if isinstance(node, Array) and node.value.is_floating_point()), dtype
    )
    limits = _index_limits(order, nodes)
    if limits is None:
        limits = _index_limits(list(postorder(*Inline().run_many(tuple(roots), Origins()))), nodes) or {}
    inputs, new = [], dict[Circuit, Circuit]()
    for name, node in zip(names, nodes, strict=True):
        label = name if isinstance(name, str) else node.name
        limit = limits.get(node)
        kind = node.torch_dtype or (torch.int64 if limit is not None else dtype)
        if kind.is_floating_point:
            kind = dtype
        symbol = Symbol(node.shape, uuid5(_NAMESPACE, label), label, kind)
        new[node] = _as_read(symbol, node.torch_dtype or constants)
        batched = Symbol((BATCH, *node.shape), uuid5(_NAMESPACE, f"{label} batched"), label, kind)
        inputs.append(Input(label, symbol, batched, limit))
    given = Matcher.circuits(*new)
    rows = [root.update(given, lambda node: new.get(node, node)) for root in roots] if new else list(roots)
    _check_all_bound(rows, inputs)
    return rows, inputs


def _as_read(symbol: Symbol, dtype: torch.dtype | None) -> Circuit:
    """The symbol in the dtype of the nodes beside it: all floating values are computed in one, whatever theirs is."""
    kind = symbol.torch_dtype
    if dtype is None or kind is None or dtype is kind or not (kind.is_floating_point and dtype.is_floating_point):
        return symbol
    return GeneralFunction.new_cast(symbol, output=TorchDeviceDtypeOp(dtype=dtype), name=None)


def _input_nodes(roots: Sequence[Circuit], names: Sequence[str | Circuit]) -> list[Circuit]:
    """The node of each name."""
    wanted, found = set(names), dict[str | Circuit, set[Circuit]]()
    for node in postorder(*roots) if wanted else ():
        if isinstance(node, Symbol | Array | DiscreteVar):
            for name in wanted & {node, node.op_name}:
                found.setdefault(name, set()).add(node)
    return [_only_node(roots, name, found.get(name, set())) for name in names]


def _only_node(roots: Sequence[Circuit], name: str | Circuit, found: set[Circuit]) -> Circuit:
    if len(found) != 1:
        candidates = sorted({symbol.name for root in roots for symbol in root.free_symbols})
        raise MatchError(
            f"{len(found)} symbols, arrays or random variables match the input {name!r}",
            facts=sorted(map(repr, found))[:8],
            hint=f"name one; free symbols are {', '.join(candidates) or 'none'}",
        )
    (node,) = found
    if not is_concrete(node.shape):
        raise ShapeError(
            f"the input {node!r} has the symbolic shape {format_shape(node.shape)}",
            hint="give one row a concrete shape; the batch axis is added in front",
        )
    return node


def _index_limits(order: Sequence[Circuit], nodes: Sequence[Circuit]) -> dict[Circuit, int] | None:
    """The smallest axis that each of the nodes, or entries of it, index; none for a node that indexes nothing.

    None if a module reads one: only its substitution shows what is indexed.
    """
    holds: dict[Circuit, set[Circuit]] = {}
    for node in nodes:
        for alias in {node, node if isinstance(node, Symbol) else node.rename(None)}:
            holds.setdefault(alias, set()).add(node)
    bodies = [node.children[0] for node in order if isinstance(node, Module)]
    if not holds.keys().isdisjoint(nodes_below(*bodies)):
        return None
    limits: dict[Circuit, int] = {}
    for each in order:
        if isinstance(each, Module) and not holds.keys().isdisjoint(each.nodes):
            return None
        if each.kind in _PASS_ON:
            passed = set().union(*(holds.get(child, ()) for child in each.children))
            if passed:
                holds.setdefault(each, set()).update(passed)
        elif isinstance(each, GeneralFunction) and isinstance(each.spec, GenIndex):
            x, index = each.children
            size = x.shape[each.spec.axis_of(each)]
            if isinstance(size, int):
                limits |= {node: min(size, limits.get(node, size)) for node in holds.get(index, ())}
    return limits


def _check_all_bound(roots: Sequence[Circuit], inputs: Sequence[Input]) -> None:
    known = {each.symbol for each in inputs}
    free = sorted({repr(symbol) for root in roots for symbol in root.free_symbols - known})
    if free:
        raise ModuleBindingError(
            f"symbols are neither bound nor inputs: {', '.join(free)}", hint="name them in `inputs`, or bind them"
        )


def check_values(
    inputs: Sequence[Input], values: Mapping[str, torch.Tensor], device: torch.device
) -> list[torch.Tensor]:
    """The values in the order of the inputs.

    Raises:
        ModuleBindingError: for a missing or unknown name.
        ShapeError, TypeMismatchError, DataError: for a value that is wrong; what is given never becomes a wrong number.
    """
    names = {each.name for each in inputs}
    if set(values) != names:
        missing, unknown = sorted(names - set(values)), sorted(set(values) - names)
        parts = [f"missing: {', '.join(missing)}"] * bool(missing) + [f"unknown: {', '.join(unknown)}"] * bool(unknown)
        raise ModuleBindingError(
            f"wrong inputs: {'; '.join(parts)}",
            hint=f"the inputs are {', '.join(each.name for each in inputs) or 'none'}",
        )
    rows: int | None = None
    for each in inputs:
        value = values[each.name]
        _check_value(each, value, device)
        if rows is not None and value.shape[0] != rows:
            raise ShapeError(
                f"input {each.name!r} has {value.shape[0]} rows, {inputs[0].name!r} has {rows}",
                hint="all inputs share the leading batch axis",
            )
        rows = value.shape[0]
    given = [values[each.name] for each in inputs]
    _check_indices(inputs, given)
    return given


def _check_value(each: Input, value: torch.Tensor, device: torch.device) -> None:
    expected = format_shape(each.batched.shape)
    if not isinstance(value, torch.Tensor):
        raise TypeMismatchError(f"input {each.name!r} is {type(value).__name__}", hint="give a torch.Tensor")
    if value.ndim != each.batched.rank or tuple(value.shape[1:]) != each.symbol.shape:
        raise ShapeError(
            f"input {each.name!r} has shape {list(value.shape)}, not {expected}",
            hint="the first axis is that of the rows; a circuit is made for one shape of a row, one length of prompts",
        )
    if value.shape[0] == 0:
        raise DataError(f"input {each.name!r} has no rows", hint="give at least one")
    if value.dtype is not each.dtype:
        raise TypeMismatchError(
            f"input {each.name!r} has dtype {dtype_name(value.dtype)}, not {dtype_name(each.dtype)}",
            hint=f"convert it: {each.name}.to(torch.{dtype_name(each.dtype)})",
        )
    if value.device != device:
        raise TypeMismatchError(
            f"input {each.name!r} is on {value.device}, the compiled circuit on {device}",
            hint=f"move it: {each.name}.to({str(device)!r}), or the circuit: compiled.to({str(value.device)!r})",
        )


def _check_indices(inputs: Sequence[Input], values: Sequence[torch.Tensor]) -> None:
    """Indices beyond their table: a GPU would not say which one it met, and could not be used after it."""
    found = [(each, each.below, value) for each, value in zip(inputs, values, strict=True) if each.below is not None]
    found = [(each, below, value) for each, below, value in found if value.numel()]
    if not found:
        return
    ends = torch.stack([end for _, _, value in found for end in value.aminmax()]).tolist()  # waits for a GPU once
    for (each, below, _), low, high in zip(found, ends[::2], ends[1::2], strict=True):
        if low < 0 or high >= below:
            raise DataError(
                f"input {each.name!r} holds {low if low < 0 else high}, outside 0 to {below - 1}",
                hint="tokens must come from the tokenizer of this model",
            )
