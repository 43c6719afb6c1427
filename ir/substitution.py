"""Substitution: nodes are replaced, and whatever stands above them is built anew and gains their batch axes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence, Set
from uuid import uuid4

from tapeout.ir.batching import align_batch
from tapeout.ir.circuit import _AUTONAME, Circuit, auto_name, postorder
from tapeout.ir.errors import ModuleBindingError, ShapeError
from tapeout.ir.gc_pause import without_gc
from tapeout.ir.nodes.concat import repeat_to_batch
from tapeout.ir.nodes.module import Module, ModuleArgSpec
from tapeout.ir.nodes.rearrange import Rearrange, RearrangeSpec
from tapeout.ir.sizes import SizeMismatch, Unifier, is_concrete
from tapeout.ir.symbol import Symbol

Bindings = Mapping[Symbol, Circuit]


@without_gc
def substitute_symbols(circuit: Circuit, bindings: Bindings, capture: bool = False) -> Circuit:
    """The circuit with free symbols replaced, all at once; their extra leading axes become batch axes.

    The batch axes of different replacements are aligned on the right and run together. What the replacements
    tell of symbolic sizes is filled into the nodes above the symbols, and into those of such sizes beside them.

    Args:
        circuit: the circuit.
        bindings: what stands for which symbol.
        capture: whether a free symbol of a replacement inside a module's body may be one that the module binds.

    Raises:
        ShapeError: if the replacements do not fit.
        ModuleBindingError: if a free symbol of a replacement would be captured by a module, and `capture` is off.
    """
    return _substitute([circuit], bindings, capture, _learnt(bindings))[0]


@without_gc
def substitute_in_all(circuits: Sequence[Circuit], bindings: Bindings) -> list[Circuit]:
    """The same in several circuits; what they share is rebuilt once.

    Raises:
        ShapeError, ModuleBindingError: see `substitute_symbols`.
    """
    return _substitute(circuits, bindings, False, _learnt(bindings))


def _learnt(bindings: Bindings) -> Unifier | None:
    """What the replacements tell of the symbols' sizes; None if nothing."""
    unifier = Unifier()
    for symbol, node in bindings.items():
        if symbol.shape == node.shape:
            continue
        try:
            for own, given in zip(reversed(symbol.shape), reversed(node.shape), strict=False):
                unifier.unify(own, given)
        except SizeMismatch:
            return None
    return unifier if unifier.known else None


def _substitute(
    circuits: Sequence[Circuit], bindings: Bindings, capture: bool, learnt: Unifier | None
) -> list[Circuit]:
    bindings = {symbol: node for symbol, node in bindings.items() if symbol is not node}
    memo: dict[Circuit, Circuit] = {symbol: node for symbol, node in bindings.items()}
    stack = list(circuits)
    while stack:
        node = stack[-1]
        if node in memo:
            stack.pop()
            continue
        settled = learnt is None or not node.children or isinstance(node, Module) or is_concrete(node.shape)
        if settled and node.free_symbols.isdisjoint(bindings):
            memo[node] = node if learnt is None else node.with_sizes(learnt)
            stack.pop()
            continue
        below = node.children[1:] if isinstance(node, Module) else node.children
        pending = [child for child in below if child not in memo]
        if pending:
            stack.extend(pending)
            continue
        stack.pop()
        if isinstance(node, Module):
            memo[node] = _expand_module(node, tuple(memo[child] for child in below), bindings, capture)
        else:
            sized = node if learnt is None else node.with_sizes(learnt)
            memo[node] = sized.expand(tuple([memo[child] for child in below]))
    return [memo[circuit] for circuit in circuits]


def _expand_module(module: Module, nodes: tuple[Circuit, ...], bindings: Bindings, capture: bool) -> Circuit:
    """A module whose arguments, and free symbols inside whose body, are replaced.

    New batch axes of both are the same axes. They come in front of those that the module has already.
    """
    body, bound = module.children[0], {spec.symbol for spec in module.arg_specs}
    inside = {symbol: node for symbol, node in bindings.items() if symbol in body.free_symbols and symbol not in bound}
    if not capture:
        _check_capture(module, inside, bound)
    extras = [new.rank - old.rank for new, old in zip(nodes, module.nodes, strict=True)]
    if _batch_stays_in_front(module, extras) and all(node.rank == old.rank for old, node in inside.items()):
        new_body = _substitute([body], inside, capture, None)[0] if inside else body
        return Module.build(new_body, module.arg_specs, nodes, module.op_name)
    batch = align_batch(
        repr(module),
        [node.shape[:extra] for node, extra in zip(nodes, extras, strict=True) if extra > 0]
        + [node.shape[: max(0, node.rank - old.rank)] for old, node in inside.items()],
    )
    widened = {
        spec.symbol: spec.symbol.conform(node.shape[:extra] + spec.symbol.shape)
        for spec, node, extra in zip(module.arg_specs, nodes, extras, strict=True)
        if extra > 0
    }
    if capture:
        inside = {symbol: _substitute([node], widened, False, None)[0] for symbol, node in inside.items()}
    new_body = _substitute([body], {**inside, **widened}, capture, None)[0]  # its sizes are names of its own
    new_body = repeat_to_batch(new_body, new_body.rank - body.rank, batch)
    specs = tuple(spec.with_symbol(widened.get(spec.symbol, spec.symbol)) for spec in module.arg_specs)
    return _behind_own_batch(module, new_body, specs, nodes, extras, len(batch))


def expand_call(module: Module, children: tuple[Circuit, ...]) -> Circuit:
    """The module over arguments that gain batch axes.

    Raises:
        ShapeError: if the body does: its symbols may have to gain the same axes.
    """
    body, *nodes = children
    if body.rank != module.children[0].rank:
        raise ShapeError(
            f"cannot expand {module!r} over a body that gained axes, {body!r}",
            hint="replace the nodes inside the body with replace_nodes",
        )
    return _expand_module(module.with_children((body, *module.nodes)).cast_module(), tuple(nodes), {}, capture=False)


def _batch_stays_in_front(module: Module, extras: Sequence[int]) -> bool:
    """Whether arguments that gain batch axes have all those of the module, so that the new ones come in front."""
    own = module.rank - module.children[0].rank
    return all(
        extra == 0 or (spec.batchable and node.rank - spec.symbol.rank == own)
        for spec, node, extra in zip(module.arg_specs, module.nodes, extras, strict=True)
    )


def _behind_own_batch(
    module: Module,
    body: Circuit,
    specs: tuple[ModuleArgSpec, ...],
    nodes: tuple[Circuit, ...],
    extras: Sequence[int],
    count: int,
) -> Circuit:
    """The call with `count` more batch axes in its body: the module's own are put before them, and swapped after."""
    own = module.rank - module.children[0].rank
    if own == 0:
        return Module.build(body, specs, nodes, module.op_name)
    shifted = tuple(
        _swap_axes(node, max(0, extra), node.rank - max(0, extra) - old.symbol.rank)
        for old, node, extra in zip(module.arg_specs, nodes, extras, strict=True)
    )
    name = None if module.op_name is None else f"{module.op_name} shift_batch"
    return _swap_axes(Module.build(body, specs, shifted, name), own, count, module.op_name)


def _swap_axes(node: Circuit, first: int, second: int, name: str | None = _AUTONAME) -> Circuit:
    """The node with its leading `first` axes and the `second` ones after them in the other order."""
    if not first or not second:
        return node
    both = first + second
    order = [*range(first, both), *range(first), *range(both, node.rank)]
    return Rearrange(node, RearrangeSpec.permute(order), auto_name(name, [node], "{} shift_batch"))


def _check_capture(module: Module, inside: Bindings, bound: Set[Symbol]) -> None:
    for symbol, node in inside.items():
        captured = node.free_symbols & bound
        if captured:
            raise ModuleBindingError(
                f"replacing {symbol!r} inside module {module.name!r} would capture " + ", ".join(map(repr, captured)),
                facts=[f"the replacement is {node!r}"],
                hint="give the replacement's symbol another uuid, or substitute the module first",
            )


@without_gc
def replace_nodes(
    circuit: Circuit, replace: Callable[[Circuit], Circuit | None] | Mapping[Circuit, Circuit]
) -> Circuit:
    """The circuit with every node for which `replace` has another one replaced, nodes above expanded.

    Nodes inside module bodies are replaced too; below a replaced node nothing is looked at. A symbol
    that a module binds means the same in a replacement inside its body.

    Raises:
        ShapeError: if the replacements do not fit, or their batch axes do not agree.
        ModuleBindingError: if a symbol that a module binds is to be replaced.
    """
    find = replace.get if isinstance(replace, Mapping) else replace
    replaced = {node: new for node in postorder(circuit) if (new := find(node)) not in (None, node)}
    if not replaced:
        return circuit
    places = {node: Symbol(node.shape, uuid4(), node.op_name, node.torch_dtype) for node in replaced}
    memo: dict[Circuit, Circuit] = dict(places)
    for node in postorder(circuit):
        if isinstance(node, Module):
            _check_bound(node, places)
        if node not in memo:
            memo[node] = node.with_children(tuple(memo[child] for child in node.children))
    return substitute_symbols(memo[circuit], {places[node]: new for node, new in replaced.items()}, capture=True)


def _check_bound(module: Module, replaced: Collection[Circuit]) -> None:
    for spec in module.arg_specs:
        if spec.symbol in replaced:
            raise ModuleBindingError(
                f"{spec.symbol!r} is bound by module {module.name!r} and cannot be replaced",
                hint="replace the module's argument, or substitute the module first",
            )
