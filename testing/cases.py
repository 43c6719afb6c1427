"""The catalogue of cases: small circuits, of every kind of node, every function and every mode of both.

    @tapeout.testing.cases.parametrize("build")
    def test_my_pass(build):
        circuit = build(torch.float64)

    for name, build in CASES.items(): build(torch.float64)

The circuits have no inputs: their leaves are constants, floating ones of the dtype asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from uuid import UUID

import torch

from tapeout.ir import (
    Add,
    Array,
    Circuit,
    Concat,
    Einsum,
    GeneralFunction,
    I,
    Index,
    Module,
    ModuleArgSpec,
    ModuleSpec,
    Rearrange,
    Scalar,
    Scatter,
    SetSymbolicShape,
    Tag,
    TorchDeviceDtypeOp,
    dim,
)
from tapeout.ir.nodes.functions import FUNCTIONS
from tapeout.testing.leaves import integers, leaf, symbol
from tapeout.testing.need import need
from tapeout.testing.ranges import DOMAINS

if TYPE_CHECKING:
    import pytest

Build = Callable[[torch.dtype], Circuit]
CASES: dict[str, Build] = {}
"""Small circuits by name, from the dtype of their constants: every kind, every function, every mode."""


def _case(name: str) -> Callable[[Build], Build]:
    def enter(build: Build) -> Build:
        CASES[name] = build
        return build

    return enter


@_case("array")
def _(dtype: torch.dtype) -> Circuit:
    return leaf("x", 2, 3, dtype=dtype)


@_case("scalar beside an array")
def _(dtype: torch.dtype) -> Circuit:
    return Add(leaf("x", 2, 3, dtype=dtype), Scalar(0.1, (3,), "tenth"))


def _einsum_case(string: str, *shapes: tuple[int, ...]) -> None:
    def build(dtype: torch.dtype) -> Circuit:
        nodes = [leaf(f"x{i}", *shape, dtype=dtype) for i, shape in enumerate(shapes)]
        return Einsum.from_einsum_string(string, *nodes, name="product")

    CASES[f"einsum {string}"] = build


for _string, *_shapes in (
    ("ab,bc->ac", (2, 3), (3, 4)),
    ("hab,hbc->ac", (2, 3, 4), (2, 4, 2)),
    ("ab,ab,ab->b", (2, 3), (2, 3), (2, 3)),
    ("ab->ba", (2, 3)),
    ("abc->b", (2, 3, 2)),
    ("aa->a", (3, 3)),
    ("aba->", (2, 3, 2)),
    ("aab,b->a", (2, 2, 3), (3,)),
    ("a->aa", (3,)),
    ("ab,b->aba", (2, 3), (3,)),
    ("a,b->ab", (2,), (3,)),
    (",a->a", (), (3,)),
    ("->", ()),
):
    _einsum_case(_string, *_shapes)


@_case("einsum of nothing")
def _(dtype: torch.dtype) -> Circuit:
    return Add(leaf("x", 2, dtype=dtype), Einsum.empty("one"))


@_case("add broadcasting")
def _(dtype: torch.dtype) -> Circuit:
    parts = [leaf(f"x{len(s)}{s[0]}", *s, dtype=dtype) for s in ((2, 3, 4), (3, 1), (4,), (1, 1, 4))]
    return Add(*parts, parts[1], Scalar(-2.0), name="sum")


@_case("add of one")
def _(dtype: torch.dtype) -> Circuit:
    return Add(leaf("x", 2, dtype=dtype))


@_case("add of nothing")
def _(dtype: torch.dtype) -> Circuit:
    return Einsum.from_einsum_string("a,->a", leaf("x", 2, dtype=dtype), Add())


def _rearrange_case(string: str, *shape: int) -> None:
    CASES[f"rearrange {string}"] = lambda dtype: Rearrange.from_string(leaf("x", *shape, dtype=dtype), string)


for _string, *_sizes in (
    ("a b c -> c a b", 2, 3, 4),
    ("a (b c:2) -> (a c) b", 3, 4),
    ("a b -> (b a)", 2, 3),
    ("a 1 b -> a b", 2, 1, 3),
    ("a b -> a 1 b 1", 2, 3),
    ("a b -> 3 a (2 b)", 2, 2),
    ("a 1 -> a 4", 2, 1),
    ("->",),
    ("-> 2 1",),
):
    _rearrange_case(_string, *_sizes)


def _index_case(name: str, index: Sequence[object]) -> None:
    CASES[f"index {name}"] = lambda dtype: Index(leaf("x", 4, 3, 5, dtype=dtype), index)


_index_case("integers", I[1, -1, 0])
_index_case("slices", I[1:3, -2:, :])
_index_case("empty slice", I[2:2])
_index_case("tensors act independently", I[torch.tensor([3, 0, 0]), :, torch.tensor([-1, 2])])
_index_case("mixed", I[torch.tensor([1]), 2, 1:4])
_index_case("an ellipsis", I[..., -1])


@_case("concat")
def _(dtype: torch.dtype) -> Circuit:
    parts = [leaf(f"x{n}", 2, n, 3, dtype=dtype) for n in (1, 2, 4)]
    return Concat(*parts, parts[0], axis=-2, name="joined")


@_case("concat of one")
def _(dtype: torch.dtype) -> Circuit:
    return Concat(leaf("x", 2, 3, dtype=dtype), axis=0)


@_case("stack")
def _(dtype: torch.dtype) -> Circuit:
    return Concat.stack(leaf("x", 2, 3, dtype=dtype), leaf("y", 2, 3, dtype=dtype), axis=1)


def _scatter_case(name: str, shape: tuple[int, ...], index: Sequence[object], whole: tuple[int, ...]) -> None:
    CASES[f"scatter {name}"] = lambda dtype: Scatter(leaf("x", *shape, dtype=dtype), index, whole)


_scatter_case("slices", (2, 3), I[1:3, 0:3], (4, 3))
_scatter_case("integers", (3,), I[1, :], (2, 3))
_scatter_case("tensors", (2, 2), I[torch.tensor([3, 0]), torch.tensor([1, -1])], (4, 3))

for _function in FUNCTIONS:
    if _function not in ("pow", "minimum", "maximum"):
        CASES[f"function {_function}"] = lambda dtype, f=_function: GeneralFunction.new_by_name(  # type: ignore[misc]
            leaf(
                "x",
                2,
                3,
                4,
                dtype=dtype,
                low=DOMAINS.get(f, (-3, 3))[0],
                high=min(DOMAINS.get(f, (-3, 3))[1], 3),
            ),
            spec_name=f,
        )


def _binary_case(function: str) -> None:
    def build(dtype: torch.dtype) -> Circuit:
        x, y = leaf("x", 2, 3, 4, dtype=dtype, low=0.2), leaf("y", 3, 1, dtype=dtype)
        return GeneralFunction.new_by_name(x, y, spec_name=function)

    CASES[f"function {function}"] = build


for _function in ("pow", "minimum", "maximum"):
    _binary_case(_function)


@_case("function pow of a number")
def _(dtype: torch.dtype) -> Circuit:
    return GeneralFunction.new_by_name(leaf("x", 2, 3, dtype=dtype), Scalar(2.0), spec_name="pow")


@_case("function cast")
def _(dtype: torch.dtype) -> Circuit:
    other = torch.float32 if dtype is torch.float64 else torch.float64
    there = GeneralFunction.new_cast(leaf("x", 2, 3, dtype=dtype), output=TorchDeviceDtypeOp(dtype=other))
    return GeneralFunction.new_cast(there, output=TorchDeviceDtypeOp(dtype=dtype))


def _gen_index_case(name: str, x: tuple[int, ...], index: tuple[int, ...], **options: int) -> None:
    def build(dtype: torch.dtype) -> Circuit:
        below = (
            x[(len(index) if options.get("batch_x") and options.get("batch_index", 1) else 0) + options["index_dim"]]
            if options["index_dim"] >= 0
            else x[options["index_dim"]]
        )
        where = Array(integers(*index, below=below, seed=len(name)), "where")
        return GeneralFunction.gen_index(leaf("x", *x, dtype=dtype), where, **options)  # type: ignore[arg-type]

    CASES[f"function gen_index {name}"] = build


_gen_index_case("neither batched", (2, 4, 3), (5, 2), index_dim=1, batch_index=False)
_gen_index_case("neither batched, from the end", (2, 4, 3), (2,), index_dim=-1, batch_index=False)
_gen_index_case("neither batched, number", (2, 4, 3), (), index_dim=1, batch_index=False)
_gen_index_case("index batched", (2, 4, 3), (5, 2), index_dim=1)
_gen_index_case("index batched, from the end", (2, 4, 3), (5,), index_dim=-2)
_gen_index_case("both batched", (2, 5, 4, 3), (2, 5), index_dim=1, batch_x=True)
_gen_index_case("both batched, from the end", (2, 4, 3), (2,), index_dim=-2, batch_x=True)
_gen_index_case("x batched", (2, 4, 3), (5, 2), index_dim=-2, batch_x=True, batch_index=False)


@_case("tag")
def _(dtype: torch.dtype) -> Circuit:
    return Tag(leaf("x", 2, 3, dtype=dtype), UUID(int=7), "tagged")


@_case("set symbolic shape")
def _(dtype: torch.dtype) -> Circuit:
    return SetSymbolicShape(leaf("x", 2, 3, dtype=dtype), (dim("SEQ"), 3))


def _affine() -> ModuleSpec:
    x, w, b = (
        symbol(1, (dim("SEQ"),), "x"),
        symbol(2, (dim("OUT"), dim("SEQ")), "w"),
        symbol(3, (dim("OUT"),), "b"),
    )
    body = Add(Einsum.from_einsum_string("i,oi->o", x, w, name="wx"), b, name="affine")
    return ModuleSpec(body, [ModuleArgSpec(s) for s in (x, w, b)])


def _module_case(name: str, x: tuple[int, ...], w: tuple[int, ...], b: tuple[int, ...]) -> None:
    def build(dtype: torch.dtype) -> Circuit:
        args = {n: leaf(n, *shape, dtype=dtype) for n, shape in (("x", x), ("w", w), ("b", b))}
        return Module(_affine(), "call", **args)

    CASES[f"module {name}"] = build


_module_case("unbatched", (3,), (2, 3), (2,))
_module_case("one argument batched", (4, 3), (2, 3), (2,))
_module_case("batch axes aligned on the right", (5, 4, 3), (4, 2, 3), (2,))


@_case("module unused argument")
def _(dtype: torch.dtype) -> Circuit:
    x, unused = symbol(1, (3,), "x"), symbol(4, (2,), "unused")
    spec = ModuleSpec(Add(x, x, name="twice"), [ModuleArgSpec(x), ModuleArgSpec(unused)], check_all_inputs_used=False)
    return Module(spec, "call", x=leaf("x", 4, 3, dtype=dtype), unused=leaf("u", 5, 4, 2, dtype=dtype))


@_case("module nested, with a constant and an outer symbol inside")
def _(dtype: torch.dtype) -> Circuit:
    x, outer = symbol(1, (3,), "x"), symbol(5, (3,), "outer")
    inner = ModuleSpec(Add(x, outer, leaf("k", 3, dtype=dtype), name="inner body"), [ModuleArgSpec(x)])
    call = Module(inner, "inner", x=Einsum.scalar_mul(outer, 2.0, "double"))
    spec = ModuleSpec(Einsum.from_einsum_string("a,a->a", call, outer, name="outer body"), [ModuleArgSpec(outer)])
    return Module(spec, "call", outer=leaf("o", 4, 3, dtype=dtype))


@_case("numbers that are infinite")
def _(dtype: torch.dtype) -> Circuit:
    x, y = leaf("x", 2, 3, dtype=dtype, low=0.2), leaf("y", 3, dtype=dtype)
    masked = Add(x, Scalar(-float("inf")), name="masked")
    largest = Einsum.scalar_mul(x, float("inf"), "largest")
    above = GeneralFunction.new_by_name(masked, y, spec_name="maximum")
    return GeneralFunction.new_by_name(largest, above, spec_name="minimum")


# -- what runtimes make one operation of, with numbers that are no power of two


@_case("product times a number")
def _(dtype: torch.dtype) -> Circuit:
    x, y = leaf("x", 2, 3, dtype=dtype), leaf("y", 4, 3, dtype=dtype)
    return Einsum.from_einsum_string("ac,bc,->ab", x, y, Scalar(0.3), name="scaled")


@_case("attention of heads")
def _(dtype: torch.dtype) -> Circuit:
    q, k, v = (leaf(name, 2, 4, 3, dtype=dtype) for name in "qkv")
    scores = Einsum.from_einsum_string("hqc,hkc,->hqk", q, k, Scalar(3**-0.5), name="scores")
    probs = GeneralFunction.new_by_name(scores, spec_name="softmax", name="probs")
    return Einsum.from_einsum_string("hqk,hkc->hqc", probs, v, name="heads")


@_case("layer norm of small numbers")
def _(dtype: torch.dtype) -> Circuit:
    x = leaf("x", 2, 3, dtype=dtype, low=-3e-3, high=3e-3)
    mean = Einsum.from_einsum_string("sh,->s", x, Scalar(-1 / 3), name="neg_mean")
    centred = Add(x, mean.unsqueeze([1]), name="centred")
    square = Einsum.from_einsum_string("sh,sh,->s", centred, centred, Scalar(1 / 3), name="var")
    factor = GeneralFunction.new_by_name(Add(square, Scalar(1e-5)), spec_name="rsqrt", name="rsqrt")
    normed = Einsum.from_einsum_string("sh,s->sh", centred, factor, name="normed")
    scaled = Einsum.from_einsum_string("sh,h->sh", normed, leaf("scale", 3, dtype=dtype), name="scaled")
    return Add(scaled, leaf("bias", 3, dtype=dtype), name="norm")


def parametrize(argument: str = "build") -> pytest.MarkDecorator:
    """A test for every case: the argument is what builds the circuit from a dtype.

    Raises:
        UnsupportedError: if pytest is not installed.
    """
    mark: pytest.MarkDecorator = need("pytest").mark.parametrize(argument, list(CASES.values()), ids=list(CASES))
    return mark
