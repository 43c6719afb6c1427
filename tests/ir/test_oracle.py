"""Against rust_circuit: values, shapes, automatic names, substitution, search, update, expansion."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from random import Random
from types import ModuleType
from typing import Any

import pytest
import torch
from harness import arrays
from hypothesis import assume, given, settings

import tapeout.ir as ours
from tapeout.backends.reference import evaluate
from tapeout.ir import Array, Circuit, Module, Symbol, postorder, replace_nodes
from tapeout.ir.errors import TapeoutError
from tapeout.ir.sizes import is_concrete
from tapeout.passes.conform import conform_all_modules
from tapeout.passes.substitute import substitute_all_modules
from tapeout.testing import random_circuit
from tapeout.testing.cases import CASES
from tapeout.testing.strategies import SEEDS

rc = pytest.importorskip("rust_circuit")
oracle = pytest.importorskip("oracle")
difference, expressible, to_rust = oracle.difference, oracle.expressible, oracle.to_rust
Inexpressible = oracle.Inexpressible


def pair(seed: int, change: Callable[[Circuit], Circuit] = lambda c: c, **options: Any) -> tuple[Circuit, Any]:
    """A random circuit and the oracle's.

    Raises:
        Inexpressible: if the oracle does not have it.
    """
    try:
        circuit = change(expressible(random_circuit(Random(seed), **options)))
    except TapeoutError as error:
        raise Inexpressible from error
    if not all(isinstance(size, int) for node in postorder(circuit) for size in node.shape):
        raise Inexpressible("the oracle forgets what it has learnt of unknown sizes")
    return circuit, to_rust(circuit)


@contextmanager
def another_if_inexpressible() -> Iterator[None]:
    """Another example is asked for where the oracle refuses one."""
    try:
        yield
    except Inexpressible:
        assume(False)


def their_value(circuit: Any) -> torch.Tensor:
    try:
        value: torch.Tensor = circuit.evaluate()
    except RuntimeError as error:  # it cannot index with an index of rank 0
        assume("flatten() has invalid args" not in str(error))
        raise
    return value


def check_same(mine: Circuit, theirs: Any) -> None:
    assert difference(mine, theirs) is None
    torch.testing.assert_close(evaluate(mine), their_value(theirs), rtol=1e-9, atol=1e-9)


# -- construction


@settings(max_examples=100)
@given(SEEDS)
def test_random_circuits_have_the_oracles_shapes_and_values(seed: int) -> None:
    with another_if_inexpressible():
        circuit, theirs = pair(seed)
    check_same(circuit, theirs)


@pytest.mark.parametrize("name", CASES)
def test_the_catalogue_has_the_oracles_shapes_and_values(name: str) -> None:
    circuit = CASES[name](torch.float64)
    try:
        theirs = to_rust(circuit)
    except Inexpressible:
        assert expressible(circuit) is not circuit or "symbolic" in name
        return
    if "number" not in name or "gen_index" not in name:
        check_same(circuit, theirs)


# Each of these runs on both libraries, `m`, over nodes of many kinds.
CONSTRUCTIONS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "add": lambda m, c, q: m.Add(c, q),
    "add to the right": lambda m, c, q: m.Add(q, c),
    "add of one": lambda m, c, q: m.Add(c),
    "add named": lambda m, c, q: m.Add(c, q, name="given"),
    "minus": lambda m, c, q: m.Add.minus(c, q),
    "weighted": lambda m, c, q: m.Add.from_weighted_nodes((c, 2.0), (q, 1.0)),
    "einsum": lambda m, c, q: m.Einsum.from_einsum_string("ab,ab->a", c, q),
    "einsum of one": lambda m, c, q: m.Einsum.from_einsum_string("ab->ba", c),
    "outer": lambda m, c, q: m.Einsum.new_outer_product(c, q),
    "rearrange": lambda m, c, q: m.Rearrange.from_string(c, "a b -> (b a)"),
    "index": lambda m, c, q: m.Index(c, [0]),
    "concat": lambda m, c, q: m.Concat(c, q, axis=-1),
    "stack": lambda m, c, q: m.Concat.stack(c, q, axis=1),
    "scatter": lambda m, c, q: m.Scatter(c, [slice(1, 4), slice(0, 3)], (5, 3)),
    "sin": lambda m, c, q: m.sin(c),
    "softmax": lambda m, c, q: m.softmax(c),
    "max": lambda m, c, q: m.max(c),
    "maximum": lambda m, c, q: m.maximum(c, q),
    "pow": lambda m, c, q: m.pow(c, q),
    "gen_index": lambda m, c, q: m.GeneralFunction.gen_index(c, m.Array(torch.tensor([0, 2]), "where"), 0),
    "cast": lambda m, c, q: m.GeneralFunction.new_cast(c, output=m.TorchDeviceDtypeOp(dtype="float32")),
    "variable": lambda m, c, q: m.DiscreteVar(c),
    "tag": lambda m, c, q: m.Tag.new_with_random_uuid(c),
    "module": lambda m, c, q: _module(m, c, q),
    ".add": lambda m, c, q: c.add(q),
    ".sub": lambda m, c, q: c.sub(q),
    ".mul": lambda m, c, q: c.mul(q),
    ".mul broadcasting": lambda m, c, q: c.unsqueeze(1).mul(q),
    ".mul of sizes 1": lambda m, c, q: c.unsqueeze(0).mul(q.unsqueeze(0)),
    ".mul_scalar": lambda m, c, q: c.mul_scalar(2.0),
    ".mul_scalar named": lambda m, c, q: c.mul_scalar(2.0, "given", "two"),
    ".sum": lambda m, c, q: c.sum(0),
    ".sum of all": lambda m, c, q: c.sum(),
    ".mean": lambda m, c, q: c.mean(-1),
    ".mean of both": lambda m, c, q: c.mean((0, 1)),
    ".max over the first": lambda m, c, q: c.max(0),
    ".min of all": lambda m, c, q: c.min(),
    ".index": lambda m, c, q: c.index([slice(0, 2), torch.tensor([1])]),
    ".unsqueeze": lambda m, c, q: c.unsqueeze((0, -1)),
    ".expand_at_axes": lambda m, c, q: c.expand_at_axes(1, 2),
    ".squeeze": lambda m, c, q: c.unsqueeze(0).squeeze(0),
    ".flatten": lambda m, c, q: c.flatten(),
    ".unflatten": lambda m, c, q: c.flatten().unflatten((3, 3)),
    ".unflatten_axis": lambda m, c, q: c.unflatten_axis(1, (3, 1)),
    ".rearrange_str": lambda m, c, q: c.rearrange_str("a b -> b a"),
    ".rename": lambda m, c, q: c.rename("given"),
}
KINDS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "array": lambda m, p, q: p,
    "nameless array": lambda m, p, q: m.Array(p.value, None),
    "array without letters": lambda m, p, q: m.Array(p.value, ""),
    "scalar": lambda m, p, q: m.Scalar(1.5, (3, 3), "s"),
    "add": lambda m, p, q: m.Add(p, q),
    "add named": lambda m, p, q: m.Add(p, q, name="N"),
    "einsum": lambda m, p, q: m.Einsum.from_einsum_string("ab,ab->ab", p, q),
    "concat": lambda m, p, q: m.Concat(p, axis=0),
    "rearrange": lambda m, p, q: p.rearrange_str("a b -> b a"),
    "index": lambda m, p, q: p.index([slice(0, 3)]),
    "function": lambda m, p, q: m.sin(p),
    "module": lambda m, p, q: _module(m, p, q),
    "difference": lambda m, p, q: p.sub(q),
}


def _module(m: Any, x: Any, y: Any) -> Any:
    symbols = [m.Symbol.new_with_none_uuid((3, 3), name) for name in ("x", "y")]
    body = m.Add(*symbols, name="body")
    return m.Module.new_flat(m.ModuleSpec(body, [m.ModuleArgSpec(s) for s in symbols]), x, y)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", CONSTRUCTIONS)
def test_constructions_and_automatic_names_are_the_oracles(what: str, kind: str) -> None:
    made = []
    for m in (ours, rc):
        leaves = [m.Array(torch.linspace(-1, 1, 9, dtype=torch.float64).reshape(3, 3) + i, "pq"[i]) for i in range(2)]
        made.append(CONSTRUCTIONS[what](m, KINDS[kind](m, *leaves), leaves[1]))
    assert difference(*made) is None
    if what != "variable":
        torch.testing.assert_close(evaluate(made[0]), made[1].evaluate(), equal_nan=True)


# -- modules


def simple(circuit: Circuit) -> Circuit:
    """Without functions of several nodes: the oracle repeats their arguments where ours broadcast."""

    def replace(node: Circuit) -> Circuit:
        if node.spec.name.startswith("gen_index"):  # type: ignore[attr-defined]
            if not is_concrete(node.shape):
                raise Inexpressible("an array of symbolic size")
            return Array(torch.ones(node.shape, dtype=torch.float64), node.op_name)  # type: ignore[arg-type]
        return ours.Add(*node.children, name=node.op_name)

    several = ours.Matcher(ours.GeneralFunction) & (lambda node: len(node.children) > 1)
    return circuit.update(several, replace)


def modules_of(seed: int) -> list[tuple[Module, Any]]:
    """The modules of a random circuit that use all their arguments, beside the oracle's."""
    circuit, theirs = pair(seed, simple, size=20, shared_names=False)
    found, stack, seen = [], [(circuit, theirs)], set[Circuit]()
    while stack:
        mine, other = stack.pop()
        if mine not in seen:
            seen.add(mine)
            if isinstance(mine, Module) and not mine.are_any_found(_has_unused_arguments):
                found.append((mine, other))
            stack.extend(zip(mine.children, other.children, strict=True))
    return found


def _has_unused_arguments(node: Circuit) -> bool:
    return isinstance(node, Module) and not all(node.spec.are_args_used())


@settings(max_examples=100)
@given(SEEDS)
def test_substitution_gives_the_oracles_names(seed: int) -> None:
    with another_if_inexpressible():
        found = modules_of(seed)
    for mine, theirs in found:
        assert difference(mine.substitute(), theirs.substitute()) is None
        prefixed = mine.substitute(name_prefix="p.")
        assert difference(prefixed, theirs.substitute(name_prefix="p.")) is None
        assert mine.aligned_batch_shape() == tuple(map(int, theirs.aligned_batch_shape()))


@settings(max_examples=80)
@given(SEEDS)
def test_conforming_gives_the_oracles_bodies(seed: int) -> None:
    with another_if_inexpressible():
        found = modules_of(seed)
    for mine, theirs in found:
        assert difference(mine.conform_to_input_shapes(), theirs.conform_to_input_shapes()) is None


@settings(max_examples=80)
@given(SEEDS)
def test_substituting_and_conforming_all_modules_give_the_oracles_names(seed: int) -> None:
    with another_if_inexpressible():
        found = modules_of(seed)
    for mine, theirs in found:
        assert difference(substitute_all_modules(mine), rc.substitute_all_modules(theirs)) is None
        assert difference(conform_all_modules(mine), rc.conform_all_modules(theirs)) is None


@pytest.mark.parametrize(
    "options",
    [
        {"name_prefix": "p."},
        {"name_suffix": ".s"},
        {"use_self_name_as_prefix": True, "name_suffix": ".s"},
        {"name_prefix": ""},
    ],
    ids=str,
)
def test_substitution_renames_what_changes(options: dict[str, Any]) -> None:
    def result(m: Any) -> Any:
        x = m.Symbol.new_with_none_uuid((3,), "x")
        arg, c = (m.Array(torch.linspace(0, 1, 3) + i, name) for i, name in enumerate(("arg", "c")))
        inner = m.Module(m.ModuleSpec(m.sin(x, name="sx"), [m.ModuleArgSpec(x)]), "call", x=m.cos(x, name="cx"))
        body = m.Add(inner, m.cos(c, name="cc"), m.tanh(x, name=""), name="body")
        return m.Module(m.ModuleSpec(body, [m.ModuleArgSpec(x)]), "m", x=arg).substitute(**options)

    assert difference(result(ours), result(rc)) is None


def test_free_symbols_come_in_the_oracles_order() -> None:
    def names(m: Any) -> list[str]:
        x, y, z = (m.Symbol.new_with_none_uuid((3,), name) for name in "xyz")
        inner = m.Module(m.ModuleSpec(m.Add(x, z), [m.ModuleArgSpec(x)]), "call", x=m.sin(y))
        return [symbol.name for symbol in m.get_free_symbols(m.Add(z, inner, y, x))]

    assert names(ours) == names(rc)


# -- search and update


class Matchers:
    """The same random matcher in both libraries."""

    def __init__(self, rng: Random, circuit: Circuit) -> None:
        self.rng = rng
        self.names = sorted({node.name for node in postorder(circuit)})

    def name(self) -> str:
        return self.rng.choice([*self.names, "missing"])

    def plain(self, depth: int = 2) -> list[Any]:
        """A matcher for each library."""
        choice = self.rng.randrange(9 if depth else 6)
        if choice == 0:
            return [self.name()] * 2
        if choice == 1:
            return [{self.name(), self.name(), self.name()}] * 2
        if choice == 2:
            pattern = self.rng.choice(("^n0", r"_1\d*_", "n1_", "2$", r"n\._", "."))
            return [m.Regex(pattern) for m in (ours, rc)]
        if choice == 3:
            kind = self.rng.choice(("Add", "Einsum", "Array", "Module", "Symbol", "Index", "GeneralFunction"))
            return [getattr(m, kind) for m in (ours, rc)]
        if choice == 4:
            digit = self.rng.choice("0123456789")
            return [lambda node: digit in node.name] * 2
        if choice == 5:
            return [self.rng.random() < 0.7] * 2
        parts = [self.plain(depth - 1) for _ in range(2)]
        if choice == 6:
            return [~m.Matcher(part) for m, part in zip((ours, rc), parts[0], strict=True)]
        if choice == 7:
            return [m.Matcher(a) & b for m, a, b in zip((ours, rc), *parts, strict=True)]
        return [m.Matcher(a) | b for m, a, b in zip((ours, rc), *parts, strict=True)]

    def filters(self) -> list[dict[str, Any]]:
        """Options of `filter` for each library."""
        start = self.rng.choice((None, None, 0, 1, 2))
        early = self.plain(1) if self.rng.random() < 0.4 else [False, False]
        length = self.rng.choice((None, None, 1, 2, 4))
        end = None if length is None else (start or 0) + length
        same = {"start_depth": start, "end_depth": end, "term_if_matches": self.rng.random() < 0.3}
        return [{**same, "term_early_at": each} for each in early]

    def iterative(self, depth: int = 3) -> list[Any]:
        choice = self.rng.randrange(8 if depth else 1)
        if choice in (0, 1):
            return [m.IterativeMatcher(part) for m, part in zip((ours, rc), self.plain(), strict=True)]
        first = self.iterative(depth - 1)
        if choice in (2, 3):
            return [
                m.restrict(matcher, **options)
                for m, matcher, options in zip((ours, rc), first, self.filters(), strict=True)
            ]
        second = self.iterative(depth - 1)
        if choice in (4, 5):
            sub = self.rng.random() < 0.4
            return [a.chain(b, must_be_sub=sub) for a, b in zip(first, second, strict=True)]
        if choice == 6:
            combine = self.rng.choice(("any", "all"))
            return [
                getattr(m.IterativeMatcher, combine)(a, b) for m, a, b in zip((ours, rc), first, second, strict=True)
            ]
        return self.children()

    def children(self) -> list[Any]:
        calls = [m.Matcher(m.Module) & part for m, part in zip((ours, rc), self.plain(1), strict=True)]
        choice = self.rng.randrange(3)
        if choice == 0:
            return [call.to_iterative_matcher().spec_circuit_matcher() for call in calls]
        if choice == 1:
            return [call.to_iterative_matcher().children_matcher({0, 1}) for call in calls]
        symbol = self.plain(1)
        return [call.to_iterative_matcher().module_arg_matcher(s) for call, s in zip(calls, symbol, strict=True)]


def names_of(nodes: Any) -> set[str]:
    return {node.name for node in nodes}


@settings(max_examples=120)
@given(SEEDS)
def test_the_oracle_finds_the_same_nodes(seed: int) -> None:
    with another_if_inexpressible():
        circuit, theirs = pair(seed, size=20, shared_names=False)
    matchers = Matchers(Random(seed), circuit)
    for _ in range(8):
        mine, other = matchers.iterative()
        found = circuit.get(mine)
        assert names_of(found) == names_of(theirs.get(other))
        assert circuit.are_any_found(mine) == bool(found) == theirs.are_any_found(other)
        assert names_of(circuit.get_paths(mine)) == names_of(found)
        paths = {tuple(n.name for n in p) for each in circuit.get_all_paths(mine).values() for p in each}
        assert paths == {tuple(n.name for n in p) for each in theirs.get_all_paths(other).values() for p in each}
        chosen = circuit.get_paths(mine)
        assert {tuple(n.name for n in path) for path in chosen.values()} <= paths


@settings(max_examples=80)
@given(SEEDS)
def test_updates_are_the_oracles(seed: int) -> None:
    """A bound symbol that is renamed is another matter: the oracle's module goes on binding the old one."""
    with another_if_inexpressible():
        circuit, theirs = pair(seed, size=20, shared_names=False)
    matchers = Matchers(Random(seed), circuit)
    for _ in range(4):
        mine, other = matchers.iterative()
        renamed = circuit.update(mine, lambda node: node if isinstance(node, Symbol) else node.rename(node.name + "!"))
        wanted = theirs.update(
            other, lambda node: node if isinstance(node, rc.Symbol) else node.rename(node.name + "!")
        )
        assert difference(renamed, wanted) is None
        # A transform that makes another node above: results are not searched again.
        wrapped = circuit.update(
            mine, lambda node: node if isinstance(node, Symbol) else ours.Add(node, name=node.op_name)
        )
        wanted = theirs.update(
            other, lambda node: node if isinstance(node, rc.Symbol) else rc.Add(node, name=node.op_name)
        )
        assert difference(wrapped, wanted) is None


@pytest.mark.parametrize("escape_dot", [True, False])
@pytest.mark.parametrize("pattern", ["a.b", r"a\.b", r"^a\.*b$", "[.x]b"])
def test_regular_expressions_treat_dots_as_the_oracle_does(pattern: str, escape_dot: bool) -> None:
    mine, theirs = ours.Regex(pattern, escape_dot), rc.Regex(pattern, escape_dot)
    texts = ("a.b", "axb", "ab", "a..b", "xa.by", "a\\.b", "")
    assert [mine.call(text) for text in texts] == [theirs.call(text) for text in texts]


# -- expansion


@settings(max_examples=80)
@given(SEEDS)
def test_expansions_have_the_oracles_values(seed: int) -> None:
    with another_if_inexpressible():
        circuit, theirs = pair(seed, shared_names=False)
    rng = Random(seed)
    chosen = [a for a in arrays(circuit) if a.value.is_floating_point() and rng.random() < 0.5]
    if not chosen:
        return
    table: dict[Circuit, Array] = {a: Array(torch.stack([a.value, 0.9 * a.value]), a.op_name) for a in chosen}
    expanders = [(a.op_name, lambda _, new=new: to_rust(new)) for a, new in table.items()]
    try:
        wanted = their_value(rc.Expander(*expanders)(theirs))
    except ValueError as error:  # it does not expand gen_index and maximum in every way
        assume("NonBatchable" not in str(error))
        raise
    found = evaluate(replace_nodes(circuit, table.get))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_this_file_compares_two_libraries() -> None:
    assert isinstance(ours, ModuleType) and ours.Add is not rc.Add
    left, right = Array(torch.zeros(2), "a"), rc.Array(torch.zeros(2), "b")
    assert difference(left, right) is not None
    assert difference(left, rc.Array(torch.zeros(2), "a")) is None


def test_the_random_circuits_hold_enough_to_compare() -> None:
    count = 0
    for seed in range(60):
        with suppress(Inexpressible):
            count += len(modules_of(seed))
    assert count > 30
