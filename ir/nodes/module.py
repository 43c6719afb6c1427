"""`Module`: a call. A circuit with symbols (the spec) and the arguments bound to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from tapeout.ir.batching import align_batch
from tapeout.ir.circuit import _AUTONAME, Circuit, auto_name
from tapeout.ir.errors import ModuleBindingError, TypeMismatchError
from tapeout.ir.nodes.module_spec import ModuleArgSpec as ModuleArgSpec
from tapeout.ir.nodes.module_spec import ModuleSpec as ModuleSpec
from tapeout.ir.nodes.module_spec import conformed
from tapeout.ir.sizes import Shape, Size, SizeMismatch, Unifier, format_shape
from tapeout.ir.symbol import Symbol


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

    def arg_items(self) -> list[tuple[Circuit, ModuleArgSpec]]:
        """Each argument with the spec that it is bound by."""
        return list(zip(self.nodes, self.arg_specs, strict=True))

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
            ModuleBindingError: if a free symbol of an argument would be captured, or there are two prefixes.
        """
        from tapeout.ir.rewriting.binding import map_above, renaming
        from tapeout.ir.substitution import substitute_symbols

        body = self.children[0]
        bindings = {spec.symbol: node for spec, node in zip(self.arg_specs, self.nodes, strict=True)}
        prefix = self._prefix(name_prefix, use_self_name_as_prefix)
        if prefix or name_suffix:
            body = map_above(body, bindings, renaming(prefix, name_suffix or ""))
        result = self._with_unused_batch(substitute_symbols(body, bindings))
        if result is self.children[0] or not body.children:
            return result
        return result.rename(self.op_name)

    def _prefix(self, name_prefix: str | None, use_self_name_as_prefix: bool) -> str:
        if not use_self_name_as_prefix:
            return name_prefix or ""
        if name_prefix is not None:
            raise ModuleBindingError(
                f"two prefixes for the nodes of module {self.name!r}: {name_prefix!r} and its own name",
                hint="give name_prefix or use_self_name_as_prefix, not both",
            )
        return f"{self.name}."

    def map_on_replaced_path(self, f: Callable[[Circuit], Circuit]) -> Module:
        """The same call with `f` applied to every node of the body above a bound symbol."""
        return self._with_spec(self.spec.map_on_replaced_path(f))

    def rename_on_replaced_path(
        self, prefix: str | None = None, suffix: str | None = None, use_self_name_as_prefix: bool = False
    ) -> Module:
        """The same call with a prefix and a suffix to the name of every node of the body above a bound symbol.

        Raises:
            ModuleBindingError: if there are two prefixes.
        """
        return self._with_spec(self.spec.rename_on_replaced_path(self._prefix(prefix, use_self_name_as_prefix), suffix))

    def _with_spec(self, spec: ModuleSpec) -> Module:
        return Module.build(spec.circuit, spec.arg_specs, self.nodes, self.op_name)

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
        sized = conformed(body, self.arg_specs, tuple(symbols))
        if not batches:
            return sized.shape, sized.torch_dtype
        batch = align_batch(f"module {self.name!r}", batches)
        gained = sized.rank - body.rank
        return batch[: len(batch) - gained] + sized.shape, sized.torch_dtype

    def _own_free_symbols(self) -> frozenset[Symbol]:
        body = self.children[0].free_symbols
        out = body - {spec.symbol for spec in self.arg_specs}
        return out.union(*(node.free_symbols for node in self.nodes))

    def _expand(self, children: tuple[Circuit, ...]) -> Circuit:
        from tapeout.ir.substitution import expand_call

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
        if own == given:
            sizes.append(given)
            continue
        if not spec.expandable:
            raise _misfit(module, spec, node, "the symbol is not expandable")
        if isinstance(own, int):
            if spec.ban_non_symbolic_size_expand:
                raise _misfit(module, spec, node, f"the symbol's size {own} is fixed")
            sizes.append(given)
            continue
        try:
            sizes.append(unifier.unify(own, given))
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
