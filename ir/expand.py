"""Substitution: nodes are replaced, and whatever stands above them is built anew and gains their batch axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tapeout.ir.circuit import Circuit, postorder
from tapeout.ir.errors import ModuleBindingError
from tapeout.ir.gc_pause import without_gc
from tapeout.ir.module import Module
from tapeout.ir.symbol import Symbol

Bindings = Mapping[Symbol, Circuit]


@without_gc
def substitute_symbols(circuit: Circuit, bindings: Bindings) -> Circuit:
    """The circuit with free symbols replaced, all at once; their extra leading axes become batch axes.

    The batch axes of different replacements are aligned on the right and run together.

    Raises:
        ShapeError: if the replacements do not fit.
        ModuleBindingError: if a free symbol of a replacement would be captured by a module.
    """
    bindings = {symbol: node for symbol, node in bindings.items() if symbol is not node}
    memo: dict[Circuit, Circuit] = dict(bindings)
    stack = [circuit]
    while stack:
        node = stack[-1]
        if node in memo:
            stack.pop()
            continue
        if node.free_symbols.isdisjoint(bindings):
            memo[node] = node
            stack.pop()
            continue
        below = node.children[1:] if isinstance(node, Module) else node.children
        pending = [child for child in below if child not in memo]
        if pending:
            stack.extend(pending)
            continue
        stack.pop()
        if isinstance(node, Module):
            memo[node] = _expand_module(node, tuple(memo[child] for child in below), bindings)
        else:
            memo[node] = node.expand(tuple([memo[child] for child in below]))
    return memo[circuit]


def _expand_module(module: Module, nodes: tuple[Circuit, ...], bindings: Bindings) -> Circuit:
    """A module whose arguments, and free symbols inside whose body, are replaced.

    Where both gain batch axes these are the same axes: the bound symbols gain them too.
    """
    body, specs = module.spec.circuit, module.spec.arg_specs
    bound = {spec.symbol for spec in specs}
    inside = {
        symbol: node
        for symbol, node in bindings.items()
        if symbol in body.free_symbols and symbol not in bound
    }
    if not inside:
        return module.with_nodes(nodes)
    if any(node.rank > spec.symbol.rank for spec, node in zip(specs, module.nodes, strict=True)):
        # The module's own batch axes become axes of its body first: the new ones go in front of them.
        return _expand_module(module.conform_to_input_shapes(), nodes, bindings)
    for symbol, node in inside.items():
        captured = node.free_symbols & bound
        if captured:
            raise ModuleBindingError(
                f"replacing {symbol!r} inside module {module.name!r} would capture {', '.join(map(repr, captured))}",
                facts=[f"the replacement is {node!r}"],
                hint="give the replacement's symbol another uuid, or substitute the module first",
            )
    widened = dict[Symbol, Circuit]()
    for spec, old, new in zip(specs, module.nodes, nodes, strict=True):
        extra = new.rank - old.rank
        widened[spec.symbol] = (
            spec.symbol.conform(new.shape[:extra] + spec.symbol.shape) if extra else spec.symbol
        )
    new_body = substitute_symbols(body, {**inside, **widened})
    new_specs = tuple(spec.with_symbol(widened[spec.symbol]) for spec in specs)
    return Module.build(new_body, new_specs, nodes, module.op_name)


@without_gc
def replace_nodes(circuit: Circuit, replace: Callable[[Circuit], Circuit | None]) -> Circuit:
    """The circuit with every node for which `replace` gives another one replaced, nodes above expanded.

    Nodes inside module bodies are replaced too; below a replaced node nothing is looked at.

    Raises:
        ShapeError: if the replacements' batch axes do not agree.
    """
    replaced = {node: new for node in postorder(circuit) if (new := replace(node)) is not None}
    if not replaced:
        return circuit
    touched = set[Circuit]()
    for node in postorder(circuit):
        if node in replaced or any(child in touched for child in node.children):
            touched.add(node)
    memo = dict(replaced)
    for node in postorder(circuit):
        if node not in touched:
            memo[node] = node
        elif node not in memo:
            children = tuple(memo[child] for child in node.children)
            if isinstance(node, Module) and children[0].rank > node.children[0].rank:
                memo[node] = _expand_with_body(node, children[1:], replace)
            else:
                memo[node] = node.expand(children)
    return memo[circuit]


def _expand_with_body(
    module: Module, nodes: tuple[Circuit, ...], replace: Callable[[Circuit], Circuit | None]
) -> Circuit:
    """A module inside whose body nodes are replaced and gain batch axes, as its arguments may too: the same axes."""
    conformed = module.conform_to_input_shapes()
    widened: dict[Circuit, Symbol] = {
        spec.symbol: spec.symbol.conform(node.shape)
        for spec, node in zip(conformed.arg_specs, nodes, strict=True)
        if node.rank > spec.symbol.rank
    }
    body = replace_nodes(conformed.children[0], lambda node: widened.get(node) or replace(node))
    specs = tuple(spec.with_symbol(widened.get(spec.symbol, spec.symbol)) for spec in conformed.arg_specs)
    return Module.build(body, specs, nodes, module.op_name)
