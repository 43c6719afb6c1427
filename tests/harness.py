"""Circuits to test with: a catalogue of small cases, and random circuits whose values stay in a sane range.

    for name, build in CASES.items(): build(torch.float64)
    @given(SEEDS) ... random_circuit(Random(seed))

Random circuits have no free symbols and no random variables; their floating leaves are float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from random import Random
from uuid import UUID

import torch
from hypothesis import strategies as st

from tapeout.ir import (
    Add,
    Array,
    Circuit,
    Concat,
    DiscreteVar,
    Einsum,
    GeneralFunction,
    I,
    Index,
    Module,
    ModuleArgSpec,
    ModuleSpec,
    Rearrange,
    RearrangeSpec,
    Scalar,
    Scatter,
    SetSymbolicShape,
    Symbol,
    Tag,
    TorchDeviceDtypeOp,
    dim,
    postorder,
)
from tapeout.ir.errors import ModuleBindingError, ShapeError
from tapeout.ir.expand import substitute_symbols
from tapeout.ir.functions import FUNCTIONS

KINDS: tuple[type[Circuit], ...] = (
    Array, Scalar, Symbol, Einsum, Add, Rearrange, Index, Concat, Scatter, GeneralFunction, Module, Tag,
    DiscreteVar, SetSymbolicShape,
)  # fmt: skip
"""Every kind of node there is."""

DOMAINS: dict[str, tuple[float, float]] = {
    "rsqrt": (0.2, 50.0),
    "reciprocal": (0.2, 50.0),
    "log": (0.2, 50.0),
    "logit": (0.05, 0.95),
    "exp": (-20.0, 4.0),
}
"""Where a function is well behaved, if not everywhere."""


# -- leaves


def tensor(
    *shape: int, seed: int = 0, low: float = -1.5, high: float = 1.5, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """Random numbers in a range, by seed."""
    generator = torch.Generator().manual_seed(seed)
    return (low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)).to(dtype)


def integers(*shape: int, below: int, seed: int = 0) -> torch.Tensor:
    """Random integers from 0, by seed."""
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


def symbol(number: int, shape: Sequence[object], name: str) -> Symbol:
    """A symbol that is the same in every run."""
    return Symbol(shape, UUID(int=number), name)  # type: ignore[arg-type]


def arrays(circuit: Circuit) -> list[Array]:
    """The constants of a circuit, module bodies included."""
    return [node for node in postorder(circuit) if isinstance(node, Array)]


def kinds(circuit: Circuit) -> set[type[Circuit]]:
    return {type(node) for node in postorder(circuit)}


# -- the catalogue

Build = Callable[[torch.dtype], Circuit]
CASES: dict[str, Build] = {}
"""Small circuits by name, from the dtype of their constants: every kind, every function, every mode."""


def _case(name: str) -> Callable[[Build], Build]:
    def enter(build: Build) -> Build:
        CASES[name] = build
        return build

    return enter


def _leaf(name: str, *shape: int, dtype: torch.dtype, low: float = -1.5, high: float = 1.5) -> Array:
    seed = sum(map(ord, name)) + 1000 * len(shape) + sum(shape)
    return Array(tensor(*shape, seed=seed, low=low, high=high, dtype=dtype), name)


@_case("array")
def _(dtype: torch.dtype) -> Circuit:
    return _leaf("x", 2, 3, dtype=dtype)


@_case("scalar beside an array")
def _(dtype: torch.dtype) -> Circuit:
    return Add(_leaf("x", 2, 3, dtype=dtype), Scalar(0.1, (3,), "tenth"))


def _einsum_case(string: str, *shapes: tuple[int, ...]) -> None:
    def build(dtype: torch.dtype) -> Circuit:
        nodes = [_leaf(f"x{i}", *shape, dtype=dtype) for i, shape in enumerate(shapes)]
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
    _einsum_case(_string, *_shapes)  # type: ignore[arg-type]


@_case("einsum of nothing")
def _(dtype: torch.dtype) -> Circuit:
    return Add(_leaf("x", 2, dtype=dtype), Einsum.empty("one"))


@_case("add broadcasting")
def _(dtype: torch.dtype) -> Circuit:
    parts = [_leaf(f"x{len(s)}{s[0]}", *s, dtype=dtype) for s in ((2, 3, 4), (3, 1), (4,), (1, 1, 4))]
    return Add(*parts, parts[1], Scalar(-2.0), name="sum")


@_case("add of one")
def _(dtype: torch.dtype) -> Circuit:
    return Add(_leaf("x", 2, dtype=dtype))


@_case("add of nothing")
def _(dtype: torch.dtype) -> Circuit:
    return Einsum.from_einsum_string("a,->a", _leaf("x", 2, dtype=dtype), Add())


def _rearrange_case(string: str, *shape: int) -> None:
    CASES[f"rearrange {string}"] = lambda dtype: Rearrange.from_string(_leaf("x", *shape, dtype=dtype), string)


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
    CASES[f"index {name}"] = lambda dtype: Index(_leaf("x", 4, 3, 5, dtype=dtype), index)


_index_case("integers", I[1, -1, 0])
_index_case("slices", I[1:3, -2:, :])
_index_case("empty slice", I[2:2])
_index_case("tensors act independently", I[torch.tensor([3, 0, 0]), :, torch.tensor([-1, 2])])
_index_case("mixed", I[torch.tensor([1]), 2, 1:4])
_index_case("an ellipsis", I[..., -1])


@_case("concat")
def _(dtype: torch.dtype) -> Circuit:
    parts = [_leaf(f"x{n}", 2, n, 3, dtype=dtype) for n in (1, 2, 4)]
    return Concat(*parts, parts[0], axis=-2, name="joined")


@_case("concat of one")
def _(dtype: torch.dtype) -> Circuit:
    return Concat(_leaf("x", 2, 3, dtype=dtype), axis=0)


@_case("stack")
def _(dtype: torch.dtype) -> Circuit:
    return Concat.stack(_leaf("x", 2, 3, dtype=dtype), _leaf("y", 2, 3, dtype=dtype), axis=1)


def _scatter_case(name: str, shape: tuple[int, ...], index: Sequence[object], whole: tuple[int, ...]) -> None:
    CASES[f"scatter {name}"] = lambda dtype: Scatter(_leaf("x", *shape, dtype=dtype), index, whole)


_scatter_case("slices", (2, 3), I[1:3, 0:3], (4, 3))
_scatter_case("integers", (3,), I[1, :], (2, 3))
_scatter_case("tensors", (2, 2), I[torch.tensor([3, 0]), torch.tensor([1, -1])], (4, 3))

for _function in FUNCTIONS:
    if _function not in ("pow", "minimum", "maximum"):
        CASES[f"function {_function}"] = lambda dtype, f=_function: GeneralFunction.new_by_name(  # type: ignore[misc]
            _leaf(
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
        x, y = _leaf("x", 2, 3, 4, dtype=dtype, low=0.2), _leaf("y", 3, 1, dtype=dtype)
        return GeneralFunction.new_by_name(x, y, spec_name=function)

    CASES[f"function {function}"] = build


for _function in ("pow", "minimum", "maximum"):
    _binary_case(_function)


@_case("function pow of a number")
def _(dtype: torch.dtype) -> Circuit:
    return GeneralFunction.new_by_name(_leaf("x", 2, 3, dtype=dtype), Scalar(2.0), spec_name="pow")


@_case("function cast")
def _(dtype: torch.dtype) -> Circuit:
    other = torch.float32 if dtype is torch.float64 else torch.float64
    there = GeneralFunction.new_cast(_leaf("x", 2, 3, dtype=dtype), output=TorchDeviceDtypeOp(dtype=other))
    return GeneralFunction.new_cast(there, output=TorchDeviceDtypeOp(dtype=dtype))


def _gen_index_case(name: str, x: tuple[int, ...], index: tuple[int, ...], **options: int) -> None:
    def build(dtype: torch.dtype) -> Circuit:
        below = (
            x[(len(index) if options.get("batch_x") and options.get("batch_index", 1) else 0) + options["index_dim"]]
            if options["index_dim"] >= 0
            else x[options["index_dim"]]
        )
        where = Array(integers(*index, below=below, seed=len(name)), "where")
        return GeneralFunction.gen_index(_leaf("x", *x, dtype=dtype), where, **options)  # type: ignore[arg-type]

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
    return Tag(_leaf("x", 2, 3, dtype=dtype), UUID(int=7), "tagged")


@_case("set symbolic shape")
def _(dtype: torch.dtype) -> Circuit:
    return SetSymbolicShape(_leaf("x", 2, 3, dtype=dtype), (dim("SEQ"), 3))


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
        args = {n: _leaf(n, *shape, dtype=dtype) for n, shape in (("x", x), ("w", w), ("b", b))}
        return Module(_affine(), "call", **args)

    CASES[f"module {name}"] = build


_module_case("unbatched", (3,), (2, 3), (2,))
_module_case("one argument batched", (4, 3), (2, 3), (2,))
_module_case("batch axes aligned on the right", (5, 4, 3), (4, 2, 3), (2,))


@_case("module unused argument")
def _(dtype: torch.dtype) -> Circuit:
    x, unused = symbol(1, (3,), "x"), symbol(4, (2,), "unused")
    spec = ModuleSpec(Add(x, x, name="twice"), [ModuleArgSpec(x), ModuleArgSpec(unused)], check_all_inputs_used=False)
    return Module(spec, "call", x=_leaf("x", 4, 3, dtype=dtype), unused=_leaf("u", 5, 4, 2, dtype=dtype))


@_case("module nested, with a constant and an outer symbol inside")
def _(dtype: torch.dtype) -> Circuit:
    x, outer = symbol(1, (3,), "x"), symbol(5, (3,), "outer")
    inner = ModuleSpec(Add(x, outer, _leaf("k", 3, dtype=dtype), name="inner body"), [ModuleArgSpec(x)])
    call = Module(inner, "inner", x=Einsum.scalar_mul(outer, 2.0, "double"))
    spec = ModuleSpec(Einsum.from_einsum_string("a,a->a", call, outer, name="outer body"), [ModuleArgSpec(outer)])
    return Module(spec, "call", outer=_leaf("o", 4, 3, dtype=dtype))


# -- random circuits


SEEDS = st.integers(0, 2**32 - 1)
"""Seeds for `random_circuit(Random(seed))`: circuits of more sorts than hypothesis would draw by itself."""


@dataclass(frozen=True)
class _Ranged:
    """A node, and numbers between which all its values are."""

    node: Circuit
    low: float
    high: float

    @property
    def largest(self) -> float:
        return max(abs(self.low), abs(self.high))


_MOST_ELEMENTS = 160
_MOST_AXES = 4
_LARGEST = 40.0
_NAMES = ("a", "b", "a.b", "a.c", "b.c", "m0", "m1", "it's", "", None)


def random_circuit(rng: Random, size: int = 16, modules: bool = True, shared_names: bool = True) -> Circuit:
    """A circuit of about `size` operations over all kinds, without free symbols or random variables.

    Args:
        rng: where the choices come from.
        size: how many operations.
        modules: whether there may be modules.
        shared_names: whether names are drawn from a few (else each node has its own).
    """
    return _Maker(rng, modules, shared_names, []).make(size).node


class _Maker:
    def __init__(self, rng: Random, modules: bool, shared_names: bool, pool: list[_Ranged], depth: int = 0) -> None:
        self.rng, self.pool, self.depth = rng, pool, depth
        self.modules, self.shared_names = modules, shared_names
        self.count = 0
        twice = [self.einsum, self.add, self.rearrange, self.index, self.function]
        once = [self.leaf, self.scalar, self.concat, self.scatter, self.binary, self.gen_index]
        self.operations = [*twice, *twice, *once, self.function, self.tag, self.set_shape]
        if modules and depth < 2:
            self.operations += [self.module, self.module]

    def make(self, size: int) -> _Ranged:
        if not self.pool:
            self.pool.append(self.leaf())
        done = 0
        while done < size:
            made = self.rng.choice(self.operations)()
            if made is not None:
                self.pool.append(made)
                done += 1
        return max(self.pool, key=lambda made: sum(1 for _ in postorder(made.node)))

    # choices

    def name(self) -> str | None:
        self.count += 1
        if self.shared_names:
            return self.rng.choice(_NAMES)
        return f"n{self.depth}_{self.count}_{self.rng.randrange(10**6)}"

    def pick(self) -> _Ranged:
        """A node, a recent one more likely."""
        recent = self.pool[-3:] if self.rng.random() < 0.7 else self.pool
        return self.rng.choice(recent)

    def shape(self) -> tuple[int, ...]:
        return tuple(self.rng.choice((1, 2, 2, 3, 3, 4)) for _ in range(self.rng.randrange(_MOST_AXES)))

    def array(self, shape: Sequence[int], low: float = -1.5, high: float = 1.5) -> _Ranged:
        value = tensor(*shape, seed=self.rng.randrange(1000), low=low, high=high)
        if len(shape) == 2 and self.rng.random() < 0.3:
            value = value.T.contiguous().T
        return _Ranged(Array(value, self.name()), low, high)

    def fits(self, node: Circuit) -> bool:
        return node.rank <= _MOST_AXES and all(isinstance(s, int) for s in node.shape) and _size(node) <= _MOST_ELEMENTS

    def bounded(self, node: Circuit, low: float, high: float) -> _Ranged | None:
        if not self.fits(node):
            return None
        if max(abs(low), abs(high)) > _LARGEST:
            return _Ranged(GeneralFunction.new_by_name(node, spec_name="tanh", name=self.name()), -1.0, 1.0)
        return _Ranged(node, low, high)

    # kinds

    def leaf(self) -> _Ranged:
        low, high = self.rng.choice(((-1.5, 1.5), (0.3, 2.0)))
        return self.array(self.shape(), low, high)

    def scalar(self) -> _Ranged | None:
        value = self.rng.choice((-1.0, 0.0, 0.5, 1.0, 2.0, -0.25))
        beside = self.pick()
        shape = beside.node.shape[self.rng.randrange(beside.node.rank + 1) :]
        node = Add(beside.node, Scalar(value, shape, self.name()), name=self.name())
        return self.bounded(node, beside.low + value, beside.high + value)

    def einsum(self) -> _Ranged | None:
        operands = [self.pick() for _ in range(self.rng.choice((1, 2, 2, 3)))]
        sizes: list[int] = []
        axes = []
        for operand in operands:
            mine = []
            for size in operand.node.shape:
                same = [i for i, known in enumerate(sizes) if known == size]
                if same and self.rng.random() < 0.6:
                    mine.append(self.rng.choice(same))
                else:
                    sizes.append(int(size))  # type: ignore[arg-type]
                    mine.append(len(sizes) - 1)
            axes.append(tuple(mine))
        out = [i for i in range(len(sizes)) if self.rng.random() < 0.6]
        self.rng.shuffle(out)
        if out and self.rng.random() < 0.2:
            out.insert(self.rng.randrange(len(out) + 1), self.rng.choice(out))
        if prod(sizes) > 2000 or prod(sizes[i] for i in out) > _MOST_ELEMENTS or len(out) > _MOST_AXES:
            return None
        node = Einsum(*zip([o.node for o in operands], axes, strict=True), out_axes=tuple(out), name=self.name())
        largest = prod(o.largest for o in operands) * prod(s for i, s in enumerate(sizes) if i not in out)
        return self.bounded(node, -largest, largest)

    def add(self) -> _Ranged | None:
        first = self.pick()
        parts = [first]
        for _ in range(self.rng.randrange(3)):
            beside = [p for p in self.pool if _broadcasts(p.node.shape, first.node.shape)]
            if beside and self.rng.random() < 0.6:
                parts.append(self.rng.choice(beside))
            else:
                shape = [1 if self.rng.random() < 0.3 else int(size) for size in first.node.shape]  # type: ignore[arg-type]
                parts.append(self.array(shape[self.rng.randrange(len(shape) + 1) :]))
        self.rng.shuffle(parts)
        node = Add(*(part.node for part in parts), name=self.name())
        return self.bounded(node, sum(p.low for p in parts), sum(p.high for p in parts))

    def rearrange(self) -> _Ranged | None:
        operand = self.pick()
        inputs: list[tuple[int, ...]] = []
        sizes: list[int | None] = []
        elementary: list[int] = []
        for size in operand.node.shape:
            if size == 1 and self.rng.random() < 0.4:
                inputs.append(())
                continue
            parts = [2, 2] if size == 4 and self.rng.random() < 0.6 else [size]
            group = []
            for part in parts:
                sizes.append(int(part))  # type: ignore[arg-type]
                group.append(len(sizes) - 1)
            if self.rng.random() < 0.5:
                sizes[group[-1]] = None
            inputs.append(tuple(group))
            elementary += group
        for _ in range(self.rng.choice((0, 0, 1))):
            sizes.append(self.rng.choice((1, 2, 3)))
            elementary.append(len(sizes) - 1)
        self.rng.shuffle(elementary)
        outputs: list[tuple[int, ...]] = []
        while elementary:
            count = self.rng.choice((1, 1, 1, 2))
            outputs.append(tuple(elementary[:count]))
            elementary = elementary[count:]
        if self.rng.random() < 0.3:
            outputs.insert(self.rng.randrange(len(outputs) + 1), ())
        spec = RearrangeSpec(tuple(inputs), tuple(outputs), tuple(sizes))
        return self.bounded(Rearrange(operand.node, spec, self.name()), operand.low, operand.high)

    def _axis_index(self, size: int, distinct: bool = False) -> int | slice | torch.Tensor:
        choice = self.rng.randrange(5)
        if choice == 0 and size:
            return self.rng.randrange(-size, size)
        if choice == 1 and size:
            count = self.rng.randrange(1, size + 1)
            if distinct:
                return torch.tensor(self.rng.sample(range(size), count))
            return torch.tensor([self.rng.randrange(-size, size) for _ in range(count)])
        if choice == 2 and size:
            start = self.rng.randrange(size)
            stop = self.rng.randrange(start + 1, size + 1)
            return slice(start - size if self.rng.random() < 0.3 else start, None if stop == size else stop)
        return slice(None)

    def index(self) -> _Ranged | None:
        operand = self.pick()
        index = [self._axis_index(int(size)) for size in operand.node.shape]  # type: ignore[arg-type]
        return self.bounded(Index(operand.node, index, self.name()), operand.low, operand.high)

    def concat(self) -> _Ranged | None:
        first = self.pick()
        if first.node.rank == 0:
            return None
        axis = self.rng.randrange(first.node.rank)
        parts = [first]
        for _ in range(self.rng.randrange(3)):
            shape = [int(size) for size in first.node.shape]  # type: ignore[arg-type]
            shape[axis] = self.rng.choice((1, 2, 3))
            same = [p for p in self.pool if p.node.rank == len(shape) and _fits_beside(p.node.shape, shape, axis)]
            parts.append(self.rng.choice(same) if same and self.rng.random() < 0.6 else self.array(shape))
        node = Concat(
            *(p.node for p in parts),
            axis=self.rng.choice((axis, axis - len(first.node.shape))),
            name=self.name(),
        )
        return self.bounded(node, min(p.low for p in parts), max(p.high for p in parts))

    def scatter(self) -> _Ranged | None:
        operand = self.pick()
        rank = operand.node.rank
        index: list[int | slice | torch.Tensor] = []
        whole: list[int] = []
        for size in map(int, operand.node.shape):  # type: ignore[arg-type]
            extra = self.rng.randrange(3)
            whole.append(size + extra)
            if self.rng.random() < 0.3:
                index.append(torch.tensor(self.rng.sample(range(size + extra), size)))
            else:
                start = self.rng.randrange(extra + 1)
                index.append(slice(start, start + size))
        if self.rng.random() < 0.3:
            at = self.rng.randrange(rank + 1)
            whole.insert(at, 2)
            index.insert(at, self.rng.choice((0, 1, -1)))
        node = Scatter(operand.node, index, whole, self.name())
        return self.bounded(node, min(0.0, operand.low), max(0.0, operand.high))

    def function(self) -> _Ranged | None:
        operand = self.pick()
        name = self.rng.choice(_UNARY)
        node = operand.node
        needs_axis = name in ("softmax", "log_softmax", "rotate_half", "min", "max", "last_dim_size")
        if needs_axis and (not node.shape or (name == "rotate_half" and int(node.shape[-1]) % 2)):  # type: ignore[arg-type]
            return None
        low, high = DOMAINS.get(name, (-_LARGEST, _LARGEST))
        if not (low <= operand.low and operand.high <= high):
            return None
        return self.bounded(GeneralFunction.new_by_name(node, spec_name=name, name=self.name()), *_image(name, operand))

    def binary(self) -> _Ranged | None:
        first = self.pick()
        beside = [p for p in self.pool if _broadcasts(p.node.shape, first.node.shape)]
        second = self.rng.choice(beside)
        name = self.rng.choice(("minimum", "maximum", "pow"))
        if name == "pow":
            if first.low < 0.2 or first.high > 3 or second.largest > 3:
                return None
            low, high = 0.0, max(first.high, 1 / first.low) ** second.largest
        else:
            low, high = min(first.low, second.low), max(first.high, second.high)
        pair = [first.node, second.node]
        if name != "pow":
            self.rng.shuffle(pair)
        return self.bounded(GeneralFunction.new_by_name(*pair, spec_name=name, name=self.name()), low, high)

    def gen_index(self) -> _Ranged | None:
        operand = self.pick()
        rank = operand.node.rank
        if not rank:
            return None
        batch_x, batch_index = self.rng.choice(((False, False), (False, True), (True, True), (True, False)))
        axis = self.rng.randrange(rank)
        shape = tuple(self.rng.choice((1, 2, 3)) for _ in range(self.rng.randrange(3)))
        if batch_x and batch_index:
            shape = operand.node.shape[: self.rng.randrange(axis + 1)]  # type: ignore[assignment]
            dim_ = self.rng.choice((axis - len(shape), axis - rank))
        else:
            dim_ = axis - rank if batch_x or self.rng.random() < 0.5 else axis
        below = int(operand.node.shape[axis])  # type: ignore[arg-type]
        if not below:
            return None
        where = Array(integers(*shape, below=below, seed=self.rng.randrange(1000)), self.name())
        node = GeneralFunction.gen_index(operand.node, where, dim_, batch_x, batch_index, name=self.name())
        return self.bounded(node, operand.low, operand.high)

    def tag(self) -> _Ranged:
        operand = self.pick()
        return _Ranged(Tag(operand.node, UUID(int=self.rng.randrange(2)), self.name()), operand.low, operand.high)

    def set_shape(self) -> _Ranged:
        operand = self.pick()
        shape = [dim(f"D{i}") if self.rng.random() < 0.5 else size for i, size in enumerate(operand.node.shape)]
        return _Ranged(SetSymbolicShape(operand.node, shape, self.name()), operand.low, operand.high)

    def module(self) -> _Ranged | None:
        arguments, symbols = [], []
        batch = tuple(self.rng.choice((1, 2, 3)) for _ in range(self.rng.choice((0, 0, 1, 1, 2))))
        for i in range(self.rng.choice((1, 2, 2, 3))):
            whole = self.pick()
            extra = self.rng.randrange(len(batch) + 1)
            own = whole.node.shape[-2:] if whole.node.rank else ()
            if extra or whole.node.rank > 2:
                whole = self.array([*batch[len(batch) - extra :], *map(int, own)])  # type: ignore[arg-type]
            arguments.append(whole)
            fresh = symbol(self.rng.randrange(10**9) * 10 + self.depth, own, f"s{self.depth}{i}")
            symbols.append(_Ranged(fresh, whole.low, whole.high))
        body = self._body(symbols)
        if self.rng.random() < 0.4:
            body, symbols = _made_symbolic(body, symbols)
        specs = [ModuleArgSpec(s.node.cast_symbol()) for s in symbols]
        module = Module.new_flat(
            ModuleSpec(body.node, specs, check_all_inputs_used=False),
            *(a.node for a in arguments),
            name=self.name(),
        )
        return self.bounded(module, body.low, body.high)

    def _body(self, symbols: list[_Ranged]) -> _Ranged:
        # Few outer nodes are visible in the body, among them perhaps those with outer symbols.
        visible = self.rng.sample(self.pool, min(2, len(self.pool)))
        maker = _Maker(self.rng, self.modules, self.shared_names, [*visible, *symbols], self.depth + 1)
        body = maker.make(self.rng.randrange(1, 5))
        for each in symbols:
            if each.node not in body.node.free_symbols and self.rng.random() < 0.8:
                total = Einsum((each.node, tuple(range(each.node.rank))), out_axes=(), name=self.name())
                most = each.largest * _size(each.node)
                both = Add(body.node, total, name=self.name())
                body = self.bounded(both, body.low - most, body.high + most) or body
        return body


_UNARY = [name for name in FUNCTIONS if name not in ("pow", "minimum", "maximum")]


def _size(node: Circuit) -> int:
    return prod(int(size) for size in node.shape)  # type: ignore[arg-type]


def _broadcasts(shape: Sequence[object], onto: Sequence[object]) -> bool:
    """Whether `shape` broadcasts onto `onto` without changing it."""
    return len(shape) <= len(onto) and all(a in (1, b) for a, b in zip(shape[::-1], onto[::-1], strict=False))


def _fits_beside(shape: Sequence[object], other: Sequence[object], axis: int) -> bool:
    return all(i == axis or a == b for i, (a, b) in enumerate(zip(shape, other, strict=True)))


def _image(function: str, operand: _Ranged) -> tuple[float, float]:
    """Numbers between which the function's values are."""
    low, high, largest = operand.low, operand.high, operand.largest
    known: dict[str, tuple[float, float]] = {
        "rsqrt": (high**-0.5 if high > 0 else 0.0, low**-0.5 if low > 0 else 0.0),
        "reciprocal": (1 / high if high > 0 else 0.0, 1 / low if low > 0 else 0.0),
        "exp": (0.0, 2.718281828459046 ** min(high, 20)),
        "log": (-2.0, 4.0),
        "logit": (-3.0, 3.0),
        "min": (low, high),
        "max": (low, high),
        "rotate_half": (-largest, largest),
        "last_dim_size": (0.0, float(operand.node.shape[-1])) if operand.node.shape else (0.0, 0.0),  # type: ignore[arg-type]
        "log_softmax": (-2 * largest - 10, 0.0),
        "softmax": (0.0, 1.0),
        "relu": (0.0, max(0.0, high)),
        "abs": (0.0, largest),
        "log_exp_p_1": (0.0, largest + 1),
    }
    return known.get(function, (-max(largest, 1.0), max(largest, 1.0)))


def _made_symbolic(body: _Ranged, symbols: list[_Ranged]) -> tuple[_Ranged, list[_Ranged]]:
    """The body over symbols with named sizes instead of numbers, where its nodes allow that."""
    sizes = {size: dim(f"N{size}") for s in symbols for size in s.node.shape if size != 1}
    named = [s.node.cast_symbol().conform(sizes.get(size, size) for size in s.node.shape) for s in symbols]
    table = {old.node.cast_symbol(): new for old, new in zip(symbols, named, strict=True)}
    try:
        node = substitute_symbols(body.node, table)
    except (ShapeError, ModuleBindingError):
        return body, symbols
    return (
        _Ranged(node, body.low, body.high),
        [_Ranged(new, old.low, old.high) for old, new in zip(symbols, named, strict=True)],
    )
