"""Random circuits whose values stay in a sane range, without free symbols and random variables.

Their floating leaves are float64. With hypothesis: `tapeout.testing.strategies`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from random import Random
from uuid import UUID

import torch

from tapeout.ir import (
    Add,
    Array,
    Circuit,
    Concat,
    Einsum,
    GeneralFunction,
    Index,
    Module,
    ModuleArgSpec,
    ModuleSpec,
    Rearrange,
    RearrangeSpec,
    Scalar,
    Scatter,
    SetSymbolicShape,
    Tag,
    dim,
    postorder,
)
from tapeout.ir.errors import ModuleBindingError, ShapeError
from tapeout.ir.nodes.functions import FUNCTIONS
from tapeout.ir.substitution import substitute_symbols
from tapeout.testing.leaves import integers, symbol, tensor
from tapeout.testing.ranges import DOMAINS, Ranged, image_of

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
    def __init__(self, rng: Random, modules: bool, shared_names: bool, pool: list[Ranged], depth: int = 0) -> None:
        self.rng, self.pool, self.depth = rng, pool, depth
        self.modules, self.shared_names = modules, shared_names
        self.count = 0
        twice = [self.einsum, self.add, self.rearrange, self.index, self.function]
        once = [self.leaf, self.scalar, self.concat, self.scatter, self.binary, self.gen_index]
        self.operations = [*twice, *twice, *once, self.function, self.tag, self.set_shape]
        if modules and depth < 2:
            self.operations += [self.module, self.module]

    def make(self, size: int) -> Ranged:
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

    def pick(self) -> Ranged:
        """A node, a recent one more likely."""
        recent = self.pool[-3:] if self.rng.random() < 0.7 else self.pool
        return self.rng.choice(recent)

    def shape(self) -> tuple[int, ...]:
        return tuple(self.rng.choice((1, 2, 2, 3, 3, 4)) for _ in range(self.rng.randrange(_MOST_AXES)))

    def array(self, shape: Sequence[int], low: float = -1.5, high: float = 1.5) -> Ranged:
        value = tensor(*shape, seed=self.rng.randrange(1000), low=low, high=high)
        if len(shape) == 2 and self.rng.random() < 0.3:
            value = value.T.contiguous().T
        return Ranged(Array(value, self.name()), low, high)

    def fits(self, node: Circuit) -> bool:
        return node.rank <= _MOST_AXES and all(isinstance(s, int) for s in node.shape) and _size(node) <= _MOST_ELEMENTS

    def bounded(self, node: Circuit, low: float, high: float) -> Ranged | None:
        if not self.fits(node):
            return None
        if max(abs(low), abs(high)) > _LARGEST:
            return Ranged(GeneralFunction.new_by_name(node, spec_name="tanh", name=self.name()), -1.0, 1.0)
        return Ranged(node, low, high)

    # kinds

    def leaf(self) -> Ranged:
        low, high = self.rng.choice(((-1.5, 1.5), (0.3, 2.0)))
        return self.array(self.shape(), low, high)

    def scalar(self) -> Ranged | None:
        value = self.rng.choice((-1.0, 0.0, 0.5, 1.0, 2.0, -0.25))
        beside = self.pick()
        shape = beside.node.shape[self.rng.randrange(beside.node.rank + 1) :]
        node = Add(beside.node, Scalar(value, shape, self.name()), name=self.name())
        return self.bounded(node, beside.low + value, beside.high + value)

    def einsum(self) -> Ranged | None:
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

    def add(self) -> Ranged | None:
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

    def rearrange(self) -> Ranged | None:
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

    def index(self) -> Ranged | None:
        operand = self.pick()
        index = [self._axis_index(int(size)) for size in operand.node.shape]  # type: ignore[arg-type]
        return self.bounded(Index(operand.node, index, self.name()), operand.low, operand.high)

    def concat(self) -> Ranged | None:
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

    def scatter(self) -> Ranged | None:
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

    def function(self) -> Ranged | None:
        operand = self.pick()
        name = self.rng.choice(_UNARY)
        node = operand.node
        needs_axis = name in ("softmax", "log_softmax", "rotate_half", "min", "max", "last_dim_size")
        if needs_axis and (not node.shape or (name == "rotate_half" and int(node.shape[-1]) % 2)):  # type: ignore[arg-type]
            return None
        low, high = DOMAINS.get(name, (-_LARGEST, _LARGEST))
        if not (low <= operand.low and operand.high <= high):
            return None
        return self.bounded(
            GeneralFunction.new_by_name(node, spec_name=name, name=self.name()), *image_of(name, operand)
        )

    def binary(self) -> Ranged | None:
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

    def gen_index(self) -> Ranged | None:
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

    def tag(self) -> Ranged:
        operand = self.pick()
        return Ranged(Tag(operand.node, UUID(int=self.rng.randrange(2)), self.name()), operand.low, operand.high)

    def set_shape(self) -> Ranged:
        operand = self.pick()
        shape = [dim(f"D{i}") if self.rng.random() < 0.5 else size for i, size in enumerate(operand.node.shape)]
        return Ranged(SetSymbolicShape(operand.node, shape, self.name()), operand.low, operand.high)

    def module(self) -> Ranged | None:
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
            symbols.append(Ranged(fresh, whole.low, whole.high))
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

    def _body(self, symbols: list[Ranged]) -> Ranged:
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
    sizes: list[int] = [int(size) for size in node.shape]  # type: ignore[arg-type]
    return prod(sizes)


def _broadcasts(shape: Sequence[object], onto: Sequence[object]) -> bool:
    """Whether `shape` broadcasts onto `onto` without changing it."""
    return len(shape) <= len(onto) and all(a in (1, b) for a, b in zip(shape[::-1], onto[::-1], strict=False))


def _fits_beside(shape: Sequence[object], other: Sequence[object], axis: int) -> bool:
    return all(i == axis or a == b for i, (a, b) in enumerate(zip(shape, other, strict=True)))


def _made_symbolic(body: Ranged, symbols: list[Ranged]) -> tuple[Ranged, list[Ranged]]:
    """The body over symbols with named sizes instead of numbers, where its nodes allow that."""
    sizes = {size: dim(f"N{size}") for s in symbols for size in s.node.shape if size != 1}
    named = [s.node.cast_symbol().conform(sizes.get(size, size) for size in s.node.shape) for s in symbols]
    table = {old.node.cast_symbol(): new for old, new in zip(symbols, named, strict=True)}
    try:
        node = substitute_symbols(body.node, table)
    except (ShapeError, ModuleBindingError):
        return body, symbols
    return (
        Ranged(node, body.low, body.high),
        [Ranged(new, old.low, old.high) for old, new in zip(symbols, named, strict=True)],
    )
