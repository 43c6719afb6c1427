"""The symbols of circuits and the modules that bind them: which are free, what stands above them, new bindings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass
from typing import Any

from tapeout.ir.circuit import _AUTONAME, Circuit
from tapeout.ir.errors import ModuleBindingError
from tapeout.ir.matching.matcher import Matcher, MatcherIn
from tapeout.ir.nodes.module import Module
from tapeout.ir.nodes.module_spec import ModuleArgSpec, ModuleSpec
from tapeout.ir.symbol import Symbol
from tapeout.ir.trampoline import memoised


def get_free_symbols(circuit: Circuit) -> list[Symbol]:
    """The free symbols below, in the order in which a depth-first walk meets them."""
    found: dict[Symbol, None] = {}
    seen = set[tuple[Circuit, frozenset[Symbol]]]()
    stack: list[tuple[Circuit, frozenset[Symbol]]] = [(circuit, frozenset())]
    while stack:
        node, bound = stack.pop()
        bound &= node.free_symbols
        if (node, bound) in seen or len(bound) == len(node.free_symbols):
            continue
        seen.add((node, bound))
        if isinstance(node, Symbol):
            found[node] = None
        below = [(child, bound) for child in node.children]
        if isinstance(node, Module):
            below[0] = (node.children[0], bound.union(spec.symbol for spec in node.arg_specs))
        stack.extend(reversed(below))
    return list(found)


def map_above(circuit: Circuit, symbols: Collection[Symbol], f: Callable[[Circuit], Circuit]) -> Circuit:
    """The circuit with `f` applied, from the leaves up, to every node above a free occurrence of one of the symbols."""

    def step(key: tuple[Circuit, frozenset[Symbol]]) -> Generator[Any, Circuit, Circuit]:
        node, symbols = key
        if not node.children or node.free_symbols.isdisjoint(symbols):
            return node
        bound = {spec.symbol for spec in node.arg_specs} if isinstance(node, Module) else set[Symbol]()
        children = []
        for i, child in enumerate(node.children):
            children.append((yield child, symbols - bound if i == 0 else symbols))
        return f(node.with_children(tuple(children)))

    return memoised(step)((circuit, frozenset(symbols)))


def renaming(prefix: str, suffix: str) -> Callable[[Circuit], Circuit]:
    """A function that puts a prefix and a suffix to a node's name, if it has one."""

    def renamed(node: Circuit) -> Circuit:
        return node if node.op_name is None else node.rename(f"{prefix}{node.op_name}{suffix}")

    return renamed


@dataclass(frozen=True, slots=True)
class BindItem:
    """What `module_new_bind` binds, with the options of a `ModuleArgSpec`.

    Attributes:
        matcher: which symbol; it must match one.
        input_circuit: the argument.
        batchable, expandable, ban_non_symbolic_size_expand: see `ModuleArgSpec`.
    """

    matcher: MatcherIn
    input_circuit: Circuit
    batchable: bool = True
    expandable: bool = True
    ban_non_symbolic_size_expand: bool = True


def module_new_bind(
    spec_circuit: Circuit,
    *binders: tuple[MatcherIn, Circuit] | BindItem,
    check_unique_arg_names: bool = True,
    name: str | None = _AUTONAME,
) -> Module:
    """A module that binds symbols of the circuit, found by matchers (names, or they themselves), to arguments.

    Raises:
        ModuleBindingError: if a matcher matches no free symbol, or several; if an argument does not fit.
    """
    free = get_free_symbols(spec_circuit)
    items = [item if isinstance(item, BindItem) else BindItem(*item) for item in binders]
    specs = []
    for item in items:
        found = list(filter(Matcher(item.matcher), free))
        if len(found) != 1:
            raise ModuleBindingError(
                f"{len(found)} free symbols of {spec_circuit!r} match {item.matcher!r}",
                hint=f"free are {', '.join(symbol.name for symbol in free) or 'none'}",
            )
        flags = (item.batchable, item.expandable, item.ban_non_symbolic_size_expand)
        specs.append(ModuleArgSpec(found[0], *flags))
    spec = ModuleSpec(spec_circuit, specs, check_unique_arg_names=check_unique_arg_names)
    return Module.new_flat(spec, *(item.input_circuit for item in items), name=name)
