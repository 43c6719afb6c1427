"""Pushing modules down: a call of a sum becomes a sum of calls, weights move to where they are used."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import lru_cache

from tapeout.ir import Circuit, Matcher, Module, ModuleArgSpec, Symbol
from tapeout.ir.errors import PassError
from tapeout.ir.labels import labels
from tapeout.ir.trampoline import memoised

Namer = Callable[[str, tuple[Module, ...]], str]
"""From a node's name and the modules it was pushed through (innermost first) to its new name."""

Stack = tuple[Module, ...]
Key = tuple[Circuit, Stack]
Step = Generator[Key, Circuit, Circuit]


def push_modules(circuit: Circuit, push: Matcher, stop: Matcher, namer: Namer, flatten: bool = True) -> Circuit:
    """The circuit with the modules that match `push` moved towards their symbols.

    From the body of such a module down, each node is built anew over its pushed children; where a
    symbol was, its argument stands. At a node that matches `stop` the way down ends: it becomes the
    body of a module that binds what it still needs. Other modules are kept, their bodies entered.

    Args:
        circuit: the circuit.
        push: which modules.
        stop: where to end.
        namer: names for the nodes built anew.
        flatten: at a stop, bind everything in one module; else keep one module for each pushed.

    Raises:
        PassError: if a module that is kept binds a symbol that a pushed one binds too.
    """
    return memoised(_Pusher(push, stop, namer, flatten, circuit).step)((circuit, ()))


class _Pusher:
    def __init__(self, push: Matcher, stop: Matcher, namer: Namer, flatten: bool, root: Circuit) -> None:
        self.push, self.stop, self.namer, self.flatten = push, stop, namer, flatten
        self.mask = push.mask(labels(root))
        self.bound = lru_cache(maxsize=None)(_bound_by)

    def step(self, key: Key) -> Step:
        node, stack = key
        needs_push = self.mask is None or bool(labels(node) & self.mask)
        if node.free_symbols.isdisjoint(self.bound(stack)) and not needs_push:
            return node
        if isinstance(node, Symbol):
            return (yield from self._resolve(node, stack))
        if self.stop(node):
            wrap = self._wrap_flat if self.flatten else self._wrap_nested
            return (yield from wrap(node, stack))
        if isinstance(node, Module):
            if self.push(node):
                return (yield from self._push(node, stack))
            self._check_shadow(node, stack)
        children = []
        for child in node.children:
            children.append((yield child, stack))
        return self._rename(node.with_children(tuple(children)), node, stack)

    def _rename(self, new: Circuit, old: Circuit, stack: Stack) -> Circuit:
        return new.rename(self.namer(old.name, stack[::-1])) if stack and new is not old and old.op_name else new

    def _resolve(self, symbol: Symbol, stack: Stack) -> Step:
        at = self.bound(stack).get(symbol)
        if at is None:
            return symbol
        return (yield _argument(stack[at], symbol), stack[:at])

    def _push(self, module: Module, stack: Stack) -> Step:
        body = module.children[0]
        result = yield body, (*stack, module)
        if self.stop(body) or result is body or not result.children:
            return result
        return result.rename(module.op_name)

    def _wrap_flat(self, node: Circuit, stack: Stack) -> Step:
        bound = self.bound(stack)
        specs, args = [], []
        for at in reversed(range(len(stack))):
            for symbol in (spec.symbol for spec in stack[at].arg_specs):
                if symbol in node.free_symbols and bound[symbol] == at:
                    specs.append(ModuleArgSpec(symbol))
                    args.append((yield from self._resolve(symbol, stack)))
        if not specs:
            return node
        return Module.build(node, tuple(specs), tuple(args), self.namer(node.name, stack[::-1]))

    def _wrap_nested(self, node: Circuit, stack: Stack) -> Step:
        wrapped = node
        for at in reversed(range(len(stack))):
            module = stack[at]
            used = [i for i, spec in enumerate(module.arg_specs) if spec.symbol in wrapped.free_symbols]
            if used:
                args = []
                for i in used:
                    args.append((yield module.nodes[i], ()))
                specs = tuple(module.arg_specs[i] for i in used)
                wrapped = Module.build(wrapped, specs, tuple(args), self.namer(node.name, stack[at:][::-1]))
        return wrapped

    def _check_shadow(self, module: Module, stack: Stack) -> None:
        twice = [spec.symbol for spec in module.arg_specs if spec.symbol in self.bound(stack)]
        if twice:
            raise PassError(
                f"cannot push modules through {module!r}: it binds what one that is pushed binds: {twice}",
                hint="substitute the inner module first",
            )


def _bound_by(stack: Stack) -> dict[Symbol, int]:
    """For each symbol bound by the stack the position of the innermost module that binds it."""
    return {spec.symbol: at for at, module in enumerate(stack) for spec in module.arg_specs}


def _argument(module: Module, symbol: Symbol) -> Circuit:
    return next(node for spec, node in zip(module.arg_specs, module.nodes, strict=True) if spec.symbol is symbol)
