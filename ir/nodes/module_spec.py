"""`ModuleSpec`: a circuit and the symbols in it that a module binds, each with what its argument may look like."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from uuid import uuid4

from tapeout.ir.circuit import Circuit
from tapeout.ir.errors import ModuleBindingError
from tapeout.ir.sizes import SizeIn, as_shape
from tapeout.ir.symbol import Symbol


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

    def __hash__(self) -> int:
        return hash(self.symbol)

    @staticmethod
    def just_name_shape(
        circuit: Circuit, batchable: bool = True, expandable: bool = True, ban_non_symbolic_size_expand: bool = False
    ) -> ModuleArgSpec:
        """For a new symbol with the name, shape and dtype of a node."""
        symbol = Symbol(circuit.shape, uuid4(), circuit.op_name, circuit.torch_dtype)
        return ModuleArgSpec(symbol, batchable, expandable, ban_non_symbolic_size_expand)

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
        from tapeout.ir.rewriting.binding import get_free_symbols

        return ModuleSpec(circuit, [ModuleArgSpec(s) for s in get_free_symbols(circuit)], True, check_unique_arg_names)

    @staticmethod
    def new_extract(
        circuit: Circuit,
        arg_specs: Sequence[tuple[Circuit, ModuleArgSpec]],
        check_all_inputs_used: bool = True,
        check_unique_arg_names: bool = True,
    ) -> ModuleSpec:
        """The spec in which the given nodes of the circuit are replaced by the symbols beside them."""
        from tapeout.ir.substitution import replace_nodes

        table = {node: spec.symbol for node, spec in arg_specs}
        return ModuleSpec(
            replace_nodes(circuit, table),
            [spec for _, spec in arg_specs],
            check_all_inputs_used,
            check_unique_arg_names,
        )

    def map_on_replaced_path(self, f: Callable[[Circuit], Circuit]) -> ModuleSpec:
        """The spec with `f` applied to every node above one of its symbols."""
        from tapeout.ir.rewriting.binding import map_above

        return self.map_circuit(lambda circuit: map_above(circuit, [spec.symbol for spec in self.arg_specs], f))

    def rename_on_replaced_path(self, name_prefix: str | None = None, name_suffix: str | None = None) -> ModuleSpec:
        """The spec with a prefix and a suffix to the name of every node above one of its symbols."""
        from tapeout.ir.rewriting.binding import renaming

        return self.map_on_replaced_path(renaming(name_prefix or "", name_suffix or ""))

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
        return ModuleSpec(conformed(self.circuit, self.arg_specs, tuple(symbols)), specs, False, False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModuleSpec) and self.circuit is other.circuit and self.arg_specs == other.arg_specs

    def __hash__(self) -> int:
        return hash((self.circuit, self.arg_specs))


def conformed(body: Circuit, arg_specs: tuple[ModuleArgSpec, ...], symbols: tuple[Symbol, ...]) -> Circuit:
    """The body with the symbols conformed; remembered on the body, because every layer asks the same."""
    from tapeout.ir.substitution import substitute_symbols

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
