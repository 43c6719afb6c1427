"""Symbolic sizes: products, how they print, and how they unify."""

from __future__ import annotations

from math import prod

import pytest
import torch
from harness import tensor
from hypothesis import given
from hypothesis import strategies as st

from tapeout.backends.reference import evaluate
from tapeout.ir import (
    Add,
    Array,
    Einsum,
    I,
    Module,
    ModuleArgSpec,
    ModuleSpec,
    Rearrange,
    Scalar,
    Scatter,
    SetSymbolicShape,
    Symbol,
    dim,
    replace_nodes,
    symbolic_sizes,
)
from tapeout.ir.sizes import (
    SEQ,
    UNKNOWN,
    Size,
    SizeMismatch,
    SymbolicSize,
    Unifier,
    add,
    as_shape,
    divide,
    format_shape,
    is_concrete,
    multiply,
)

NAMES = ("A", "B", "C")
sizes = st.one_of(
    st.integers(0, 12),
    st.builds(
        lambda factor, names: multiply([factor, *map(dim, names)]),
        st.integers(1, 6),
        st.lists(st.sampled_from(NAMES), min_size=1, max_size=3),
    ),
)
assignments = st.fixed_dictionaries({name: st.integers(1, 5) for name in NAMES})


def at(size: Size, values: dict[str, int]) -> int:
    """The number that a size is when its dimensions have these values."""
    return size if isinstance(size, int) else size.factor * prod(values[name] for name in size.dims)


@given(st.lists(sizes, max_size=4), assignments)
def test_products_are_products(factors: list[Size], values: dict[str, int]) -> None:
    assert at(multiply(factors), values) == prod(at(size, values) for size in factors)
    assert multiply(factors) == multiply(reversed(factors))


@given(sizes, sizes, assignments)
def test_sums_are_sums_or_unknown(left: Size, right: Size, values: dict[str, int]) -> None:
    total = add(left, right)
    assert total == UNKNOWN or at(total, values) == at(left, values) + at(right, values)
    if isinstance(left, SymbolicSize) and left == right:
        assert total == multiply((2, left))


@given(sizes, sizes, assignments)
def test_quotients_are_quotients_unknown_or_impossible(left: Size, right: Size, values: dict[str, int]) -> None:
    quotient = divide(left, right)
    numbers = at(left, values), at(right, values)
    if quotient is None:
        assert not isinstance(left, int) or numbers[1] == 0 or numbers[0] % numbers[1]
    elif quotient != UNKNOWN:
        assert at(quotient, values) * numbers[1] == numbers[0]


@given(sizes, sizes)
def test_a_product_divided_is_the_other_factor(left: Size, right: Size) -> None:
    if right != 0:
        assert divide(multiply((left, right)), right) == left


@given(st.lists(st.tuples(sizes, sizes), min_size=1, max_size=4), assignments)
def test_sizes_that_are_equal_for_some_values_unify(pairs: list[tuple[Size, Size]], values: dict[str, int]) -> None:
    """Whatever was learnt holds for all values that make every pair equal; none is called a mismatch."""
    unifier = Unifier()
    equal = all(at(left, values) == at(right, values) for left, right in pairs)
    try:
        results = [unifier.unify(left, right) for left, right in pairs]
    except SizeMismatch:
        assert not equal
        return
    if equal:
        for (left, _), result in zip(pairs, results, strict=True):
            assert at(unifier.resolve(result), values) == at(left, values)
        assert all(values[name] == at(size, values) for name, size in unifier.known.items())


@given(sizes)
def test_a_size_unifies_with_itself_and_with_the_wildcard(size: Size) -> None:
    assert Unifier().unify(size, size) == size
    assert Unifier().unify(size, UNKNOWN) == size == Unifier().unify(UNKNOWN, size)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (2, 3),
        (1, 3),
        (2 * SEQ, 3),
        (SEQ, 2 * SEQ),
        (0, 3),
        (multiply((2, SEQ, SEQ)), multiply((3, SEQ, SEQ))),
    ],
    ids=str,
)
def test_sizes_that_cannot_be_equal(left: Size, right: Size) -> None:
    for pair in ((left, right), (right, left)):
        with pytest.raises(SizeMismatch):
            Unifier().unify(*pair)


def test_what_is_learnt_holds_from_then_on() -> None:
    unifier = Unifier()
    assert unifier.unify(2 * dim("A"), 6) == 6
    assert unifier.resolve(dim("A") * dim("B")) == 3 * dim("B")
    assert unifier.unify(dim("B"), dim("C")) in (dim("B"), dim("C"))
    assert unifier.unify(dim("C"), 5) == 5
    assert unifier.resolve(dim("A") * dim("B")) == 15
    with pytest.raises(SizeMismatch):
        unifier.unify(dim("B"), 4)


def test_a_dimension_that_equals_a_product_with_itself_ends() -> None:
    unifier = Unifier()
    unifier.unify(dim("A"), dim("A") * dim("B"))
    assert unifier.resolve(dim("A")) == dim("A")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (3, "3"),
        (SEQ, "SEQ"),
        (2 * SEQ, "2*SEQ"),
        (SEQ * dim("HIDDEN"), "HIDDEN*SEQ"),
        (3 * dim("B") * dim("A") * 2, "6*A*B"),
        (UNKNOWN, "?"),
        (2 * UNKNOWN, "?"),
    ],
)
def test_sizes_print_readably(size: Size, text: str) -> None:
    assert str(size) == text
    assert format_shape((size, 4)) == f"[{text},4]"
    assert f"{Symbol.new_with_none_uuid((size,), 's')!r}" == f"<s [{text}] Symbol>"


def test_products_are_written_as_products() -> None:
    assert 2 * SEQ == SEQ * 2 == multiply((SEQ, 2)) != SEQ
    assert 0 * SEQ != 0  # unknown until SEQ is
    assert hash(SEQ * dim("A")) == hash(dim("A") * SEQ)


def test_numbered_sizes_are_distinct() -> None:
    first, second = symbolic_sizes()[:2]
    assert first != second
    assert len(set(symbolic_sizes())) == 26
    assert Symbol.new_with_none_uuid((first, second, None)).shape == (first, second, UNKNOWN)


def test_shapes_are_read() -> None:
    assert as_shape([None, 2, SEQ]) == (UNKNOWN, 2, SEQ)
    assert is_concrete((2, 3)) and not is_concrete((2, SEQ))


def test_a_module_takes_arguments_of_any_agreeing_size_and_conforms_to_them() -> None:
    x, y = Symbol.new_with_none_uuid((SEQ, 3), "x"), Symbol.new_with_none_uuid((SEQ, dim("HID")), "y")
    body = Rearrange.from_string(Add(x, x), "s c -> (s c)", "body")
    for count in (4, 7):
        call = Module(ModuleSpec(body, [ModuleArgSpec(x)]), "call", x=Symbol.new_with_none_uuid((count, 3), "arg"))
        assert call.shape == (3 * count,)
        assert call.children[0].shape == (3 * SEQ,)
        conformed = call.conform_to_input_shapes()
        assert conformed.children[0].shape == call.shape == conformed.shape
        assert [spec.symbol.shape for spec in conformed.arg_specs] == [(count, 3)]
        assert conformed.arg_specs[0].symbol.uuid == x.uuid
    assert ModuleSpec(body, [ModuleArgSpec(x)]).resize([(5, 3)]).circuit.shape == (15,)
    wider = ModuleSpec(Add(x, y.conform((SEQ, 3)), name="b"), [ModuleArgSpec(x)]).resize([(2, 5, 3)])
    assert wider.circuit.shape == (2, 5, 3)


class TestSizesInsideBodies:
    """Numbers that a body is written with (of repeats, scalars, scatters) are those of its arguments."""

    x = Symbol.new_with_none_uuid((SEQ, 2), "x")
    spec = ModuleSpec(
        Add(
            Einsum.from_einsum_string("sc,s->sc", x, Scalar(2.0, (SEQ,), "twos")),
            Scatter(x.index(I[0]), I[0, :], (SEQ, 2)),
            SetSymbolicShape(x, (SEQ, dim("CHANNELS"))),
            Einsum.from_einsum_string("rsc->sc", x.expand_at_axes(0, [SEQ])),
            name="body",
        ),
        [ModuleArgSpec(x)],
    )

    def value(self, x: torch.Tensor) -> torch.Tensor:
        first = torch.zeros_like(x)
        first[..., 0, :] = x[..., 0, :]
        return 2 * x + first + x + x.shape[-2] * x

    @pytest.mark.parametrize("shape", [(3, 2), (5, 2), (4, 3, 2), (1, 2)], ids=str)
    def test_a_call(self, shape: tuple[int, ...]) -> None:
        value = tensor(*shape)
        call = Module(self.spec, "call", x=Array(value, "arg"))
        for circuit in (call, call.substitute(), call.conform_to_input_shapes()):
            assert circuit.shape == shape
            torch.testing.assert_close(evaluate(circuit), self.value(value))
        assert call.children[0].shape == (SEQ, 2)

    def test_a_call_that_gains_a_batch(self) -> None:
        arg, new = Array(tensor(3, 2), "arg"), Array(tensor(4, 3, 2), "new")
        call = replace_nodes(Module(self.spec, "call", x=arg), {arg: new}.get)
        torch.testing.assert_close(evaluate(call), self.value(new.value))

    def test_an_inner_body_has_sizes_of_its_own(self) -> None:
        y = Symbol.new_with_none_uuid((SEQ, 2), "y")
        free = Symbol.new_with_none_uuid((2,), "free")
        inner_body = Einsum.from_einsum_string("sc,s,c->sc", y, Scalar(1.0, (SEQ,)), free)
        inner = Module(ModuleSpec(inner_body, [ModuleArgSpec(y)]), y=Array(tensor(7, 2), "inner arg"))
        outer = Add(Einsum.from_einsum_string("sc->c", self.x), Einsum.from_einsum_string("sc->c", inner))
        spec = ModuleSpec(outer, [ModuleArgSpec(self.x), ModuleArgSpec(free)])
        value, ones = tensor(3, 2), tensor(2)
        call = Module(spec, "call", x=Array(value), free=Array(ones))
        torch.testing.assert_close(evaluate(call), value.sum(0) + tensor(7, 2).sum(0) * ones)
