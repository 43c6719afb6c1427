"""`Module`: a call. A circuit with symbols (the spec) and the arguments bound to them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from tapeout.ir.batching import align_batch
from tapeout.ir.circuit import _AUTONAME, Circuit, auto_name
from tapeout.ir.errors import ModuleBindingError, TypeMismatchError
from tapeout.ir.sizes import Shape, Size, SizeIn, SizeMismatch, Unifier, as_shape, format_shape
from tapeout.ir.symbol import Symbol
from tapeout.ir.trampoline import memoised

if TYPE_CHECKING:
    from tapeout.ir.matcher import MatcherIn


@dataclass(frozen=True, slots=True)
class ModuleArgSpec:
    """A symbol that a module binds, and what an argument for it may look like.

    Attributes:
        symbol: the symbol.
        batchable: whether the argument may have more leading axes.
        expandable: whether the argument's sizes may differ from the symbol's where these are symbolic.
        ban_non_symbolic_size_expand: whether concrete sizes of the symbol must be the argument's.
    """

    symbol: Symbol
    batchable: bool = True
    expandable: bool = True
    ban_non_symbolic_size_expand: bool = True

    def with_symbol(self, symbol: Symbol) -> ModuleArgSpec:
        return self if symbol is self.symbol else replace(self, symbol=symbol)


class ModuleSpec:
    """A circuit and the symbols in it that arguments are bound to, in order.

    Raises:
        ModuleBindingError: if a symbol does not occur in the circuit, or two have the same name
            (each check can be turned off).
    """

    __slots__ = ("arg_specs", "circuit")

    circuit: Circuit
    arg_specs: tuple[ModuleArgSpec, ...]

    def __init__(
        self,
        circuit: Circuit,
        arg_specs: Sequence[ModuleArgSpec],
        check_all_inputs_used: bool = True,
        check_unique_arg_names: bool = True,
    ) -> None:
        self.circuit = circuit
        self.arg_specs = tuple(arg_specs)
        if check_all_inputs_used:
            self.check_all_inputs_used()
        if check_unique_arg_names:
            self.check_unique_arg_names()

    def check_all_inputs_used(self) -> None:
        unused = [spec.symbol for spec in self.arg_specs if spec.symbol not in self.circuit.free_symbols]
        if unused:
            raise ModuleBindingError(
                f"the spec of {self.circuit!r} binds symbols that do not occur in it: {', '.join(map(repr, unused))}",
                hint="leave them out, or pass check_all_inputs_used=False",
            )

    def check_unique_arg_names(self) -> None:
        names = [spec.symbol.op_name for spec in self.arg_specs]
        twice = sorted({str(name) for name in names if name is None or names.count(name) > 1})
        if twice:
            raise ModuleBindingError(
                f"the spec of {self.circuit!r} has several arguments of one name: {', '.join(twice)}",
                hint="rename the symbols, or pass check_unique_arg_names=False and use Module.new_flat",
            )

    @staticmethod
    def new_free_symbols(circuit: Circuit, check_unique_arg_names: bool = True) -> ModuleSpec:
        """The spec that binds every free symbol of the circuit, in the order in which they occur."""
        return ModuleSpec(circuit, [ModuleArgSpec(s) for s in get_free_symbols(circuit)], True, check_unique_arg_names)

    @staticmethod
    def new_extract(
        circuit: Circuit,
        arg_specs: Sequence[tuple[Circuit, ModuleArgSpec]],
        check_all_inputs_used: bool = True,
        check_unique_arg_names: bool = True,
    ) -> ModuleSpec:
        """The spec in which the given nodes of the circuit are replaced by the symbols beside them."""
        from tapeout.ir.expand import replace_nodes

        table = {node: spec.symbol for node, spec in arg_specs}
        return ModuleSpec(
            replace_nodes(circuit, table.get),
            [spec for _, spec in arg_specs],
            check_all_inputs_used,
            check_unique_arg_names,
        )

    def map_circuit(self, f: Callable[[Circuit], Circuit]) -> ModuleSpec:
        return ModuleSpec(f(self.circuit), self.arg_specs, False, False)

    def are_args_used(self) -> list[bool]:
        return [spec.symbol in self.circuit.free_symbols for spec in self.arg_specs]

    def resize(self, shapes: Sequence[Iterable[SizeIn]]) -> ModuleSpec:
        """The spec for arguments of exactly these shapes: symbols conformed, the body expanded over batch axes."""
        symbols = [spec.symbol.conform(as_shape(shape)) for spec, shape in zip(self.arg_specs, shapes, strict=True)]
        return self.with_symbols(symbols)

    def with_symbols(self, symbols: Sequence[Symbol]) -> ModuleSpec:
        specs = [spec.with_symbol(symbol) for spec, symbol in zip(self.arg_specs, symbols, strict=True)]
        return ModuleSpec(_conformed(self.circuit, self.arg_specs, tuple(symbols)), specs, False, False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModuleSpec) and self.circuit is other.circuit and self.arg_specs == other.arg_specs

    def __hash__(self) -> int:
        return hash((self.circuit, self.arg_specs))


class Module(Circuit):
    """A call: the value of `spec.circuit` with its symbols bound to the arguments.

    An argument may have more leading axes than its symbol. These batch axes of all arguments are
    aligned on the right, run together, and are batch axes of the result.

    Args:
        spec: the circuit and its symbols.
        name: the node's name.
        kwargs: the argument for each symbol, by the symbol's name.

    Raises:
        ModuleBindingError: if an argument is missing, unknown or of a shape or dtype that does not fit.
    """

    __slots__ = ()

    def __new__(cls, spec: ModuleSpec, name: str | None = _AUTONAME, **kwargs: Circuit) -> Module:
        names = [arg.symbol.name for arg in spec.arg_specs]
        missing, unknown = set(names) - set(kwargs), set(kwargs) - set(names)
        if missing or unknown:
            raise ModuleBindingError(
                f"module {_call_name(name, spec.circuit, kwargs.values())!r}: "
                + "; ".join(
                    f"{what}: {', '.join(sorted(which))}"
                    for what, which in (("missing", missing), ("unknown", unknown))
                    if which
                ),
                hint=f"its arguments are {', '.join(names)}",
            )
        return Module.new_flat(spec, *(kwargs[arg] for arg in names), name=name)

    @staticmethod
    def new_flat(spec: ModuleSpec, *nodes: Circuit, name: str | None = _AUTONAME) -> Module:
        """A module with its arguments in the order of the spec.

        Raises:
            ModuleBindingError: if their number or an argument does not fit.
        """
        if len(nodes) != len(spec.arg_specs):
            called = _call_name(name, spec.circuit, nodes)
            raise ModuleBindingError(
                f"module {called!r} takes {len(spec.arg_specs)} arguments, not {len(nodes)}",
                hint=f"its arguments are {', '.join(arg.symbol.name for arg in spec.arg_specs)}",
            )
        return Module.build(spec.circuit, spec.arg_specs, nodes, _call_name(name, spec.circuit, nodes))

    @classmethod
    def build(
        cls, body: Circuit, arg_specs: tuple[ModuleArgSpec, ...], nodes: tuple[Circuit, ...], name: str | None
    ) -> Module:
        """The module from its parts."""
        return cls._make((arg_specs,), (body, *nodes), name)

    @property
    def arg_specs(self) -> tuple[ModuleArgSpec, ...]:
        return self.attributes[0]  # type: ignore[no-any-return]

    @property
    def spec(self) -> ModuleSpec:
        return ModuleSpec(self.children[0], self.arg_specs, False, False)

    @property
    def nodes(self) -> tuple[Circuit, ...]:
        """The arguments."""
        return self.children[1:]

    def with_nodes(self, nodes: tuple[Circuit, ...]) -> Module:
        """The same call with other arguments."""
        return self._intern(self._variety, (self.children[0], *nodes), self.op_name, self)

    def with_mapped_children(self, children: tuple[Circuit, ...], symbols: Sequence[Circuit]) -> Module:
        """The same call with other children, and what has become of the bound symbols.

        Raises:
            ModuleBindingError: if a bound symbol was replaced by something else.
        """
        new_specs = []
        for spec, symbol in zip(self.arg_specs, symbols, strict=True):
            if not isinstance(symbol, Symbol):
                raise ModuleBindingError(
                    f"{spec.symbol!r} is bound by module {self.name!r} and cannot be replaced by {symbol!r}",
                    hint="substitute the module first, or leave bound symbols out of the matcher",
                )
            new_specs.append(spec.with_symbol(symbol))
        return Module.build(children[0], tuple(new_specs), children[1:], self.op_name)

    def substitute(
        self,
        name_prefix: str | None = None,
        name_suffix: str | None = None,
        use_self_name_as_prefix: bool = False,
    ) -> Circuit:
        """The body with the arguments in place of the symbols: the same value without this module.

        The result has the module's name, unless the body is unchanged or a leaf. Nodes that
        change get the prefix and suffix, if any.

        Raises:
            ModuleBindingError: if a free symbol of an argument would be captured.
        """
        from tapeout.ir.expand import substitute_symbols

        body = self.children[0]
        bindings = {spec.symbol: node for spec, node in zip(self.arg_specs, self.nodes, strict=True)}
        if use_self_name_as_prefix:
            name_prefix = f"{self.name}."
        if name_prefix or name_suffix:
            body = _rename_on_path(body, bindings, name_prefix or "", name_suffix or "")
        result = self._with_unused_batch(substitute_symbols(body, bindings))
        if result is self.children[0] or not body.children:
            return result
        return result.rename(self.op_name)

    def _with_unused_batch(self, body: Circuit) -> Circuit:
        """The body, bound, with the batch axes of arguments that it does not use."""
        missing = self.rank - body.rank
        if not missing:
            return body
        repeated = body.expand_at_axes(range(missing), self.shape[:missing])
        return repeated.rename(auto_name(_AUTONAME, [body], "{} rep_batch"))

    def conform_to_input_shapes(self) -> Module:
        """The same call, its symbols with exactly the shapes of the arguments and the body expanded to match."""
        symbols = [
            spec.symbol.conform(node.shape, node.torch_dtype)
            for spec, node in zip(self.arg_specs, self.nodes, strict=True)
        ]
        spec = self.spec.with_symbols(symbols)
        return Module.build(self._with_unused_batch(spec.circuit), spec.arg_specs, self.nodes, self.op_name)

    def aligned_batch_shape(self) -> Shape:
        """The batch axes that the arguments give to the result."""
        return align_batch(
            repr(self),
            [n.shape[: n.rank - s.symbol.rank] for s, n in zip(self.arg_specs, self.nodes, strict=True)],
        )

    def _infer(self) -> tuple[Shape, torch.dtype | None]:
        body = self.children[0]
        symbols, batches = [], []
        for spec, node in zip(self.arg_specs, self.nodes, strict=True):
            symbol = _conform_symbol(self, spec, node)
            symbols.append(symbol)
            if symbol.rank > spec.symbol.rank:
                batches.append(symbol.shape[: symbol.rank - spec.symbol.rank])
        conformed = _conformed(body, self.arg_specs, tuple(symbols))
        if not batches:
            return conformed.shape, conformed.torch_dtype
        batch = align_batch(f"module {self.name!r}", batches)
        gained = conformed.rank - body.rank
        return batch[: len(batch) - gained] + conformed.shape, conformed.torch_dtype

    def _own_free_symbols(self) -> frozenset[Symbol]:
        body = self.children[0].free_symbols
        out = body - {spec.symbol for spec in self.arg_specs}
        return out.union(*(node.free_symbols for node in self.nodes))

    def _expand(self, children: tuple[Circuit, ...]) -> Circuit:
        from tapeout.ir.expand import expand_call

        return expand_call(self, children)

    def _text(self) -> str:
        return ""


def _call_name(name: Any, body: Circuit, nodes: Iterable[Circuit]) -> str | None:
    """The name given, or `body(argument, argument)`."""
    arguments = auto_name(name, nodes, joiner=", ")
    if name is not _AUTONAME:
        return arguments
    return None if body.op_name is None or arguments is None else f"{body.op_name}({arguments})"


def _conform_symbol(module: Module, spec: ModuleArgSpec, node: Circuit) -> Symbol:
    """The symbol with the shape and dtype of its argument.

    Raises:
        ModuleBindingError: if the argument does not fit.
    """
    symbol = spec.symbol
    extra = node.rank - symbol.rank
    if symbol.shape == node.shape and symbol.torch_dtype is node.torch_dtype:
        return symbol
    if extra < 0 or (extra and not spec.batchable):
        raise _misfit(module, spec, node, "the argument has fewer axes" if extra < 0 else "the symbol is not batchable")
    if symbol.torch_dtype is not None and node.torch_dtype not in (None, symbol.torch_dtype):
        raise TypeMismatchError(
            f"argument {node!r} of module {module.name!r} has dtype {node.dtype}, its symbol {symbol!r} {symbol.dtype}",
            hint="cast the argument (cast_circuit, or GeneralFunction.new_cast)",
        )
    unifier = Unifier()
    sizes: list[Size] = list(node.shape[:extra])
    for own, given in zip(symbol.shape, node.shape[extra:], strict=True):
        if own != given and not spec.expandable:
            raise _misfit(module, spec, node, "the symbol is not expandable")
        if own != given and isinstance(own, int) and spec.ban_non_symbolic_size_expand:
            raise _misfit(module, spec, node, f"the symbol's size {own} is fixed")
        try:
            sizes.append(given if isinstance(own, int) else unifier.unify(own, given))
        except SizeMismatch:
            raise _misfit(module, spec, node, f"size {given} is no {own}") from None
    return symbol.conform(map(unifier.resolve, sizes), node.torch_dtype)


def _misfit(module: Module, spec: ModuleArgSpec, node: Circuit, why: str) -> ModuleBindingError:
    return ModuleBindingError(
        f"argument {node!r} of shape {format_shape(node.shape)} does not fit symbol {spec.symbol.name!r} "
        f"{format_shape(spec.symbol.shape)} of module {module.name!r}: {why}",
        hint="an argument has the symbol's axes last, more leading (batch) axes at will, and sizes equal "
        "where the symbol's are numbers",
    )


def _conformed(body: Circuit, arg_specs: tuple[ModuleArgSpec, ...], symbols: tuple[Symbol, ...]) -> Circuit:
    """The body with the symbols conformed; remembered on the body, because every layer asks the same."""
    from tapeout.ir.expand import substitute_symbols

    changed = tuple((spec.symbol, new) for spec, new in zip(arg_specs, symbols, strict=True) if spec.symbol is not new)
    if not changed:
        return body
    if body._memo is None:
        body._memo = {}
    found = body._memo.get(changed)
    if found is None:
        found = substitute_symbols(body, dict(changed))
        if found is not body:  # a node that remembers itself would never be freed
            body._memo[changed] = found
    return found


def _rename_on_path(body: Circuit, bindings: Collection[Symbol], prefix: str, suffix: str) -> Circuit:
    """The body with the nodes above the free symbols `bindings` renamed."""

    def step(key: tuple[Circuit, frozenset[Symbol]]) -> Generator[Any, Circuit, Circuit]:
        node, symbols = key
        if not node.children or node.free_symbols.isdisjoint(symbols):
            return node
        bound = {spec.symbol for spec in node.arg_specs} if isinstance(node, Module) else set[Symbol]()
        children = []
        for i, child in enumerate(node.children):
            children.append((yield child, symbols - bound if i == 0 else symbols))
        changed = node.with_children(tuple(children))
        return changed if node.op_name is None else changed.rename(f"{prefix}{node.op_name}{suffix}")

    return memoised(step)((body, frozenset(bindings)))


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


def module_new_bind(circuit: Circuit, *bindings: tuple[MatcherIn, Circuit], name: str | None = _AUTONAME) -> Module:
    """A module that binds symbols of the circuit, found by matchers (names, or they themselves), to arguments.

    Raises:
        ModuleBindingError: if a matcher matches no free symbol, or several.
    """
    from tapeout.ir.matcher import Matcher

    free = get_free_symbols(circuit)
    specs = []
    for which, _ in bindings:
        found = list(filter(Matcher(which), free))
        if len(found) != 1:
            raise ModuleBindingError(
                f"{len(found)} free symbols of {circuit!r} match {which!r}",
                hint=f"free are {', '.join(symbol.name for symbol in free) or 'none'}",
            )
        specs.append(ModuleArgSpec(found[0]))
    return Module.new_flat(ModuleSpec(circuit, specs), *(node for _, node in bindings), name=name)
