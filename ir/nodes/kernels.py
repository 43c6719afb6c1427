"""Functions that stand for a whole pattern of nodes, because backends have a kernel for it.

They are functions like any other: with a shape rule and a definition in torch that the reference
evaluates. Only the compiler makes them, by recognising the patterns.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tapeout.ir.circuit import Circuit
from tapeout.ir.dtypes import join_dtypes
from tapeout.ir.errors import ShapeError, UnsupportedError
from tapeout.ir.nodes.einsum import Axes, Einsum, read_axes, write_einsum
from tapeout.ir.nodes.functions import Function
from tapeout.ir.sizes import Shape, SizeMismatch, Unifier, format_shape


class _Kernel:
    """What kernels have in common."""

    __slots__ = ()

    def expand(self, node: Circuit, children: tuple[Circuit, ...]) -> tuple[Function, tuple[Circuit, ...]]:
        raise UnsupportedError(f"{node!r} is never expanded", hint="expand circuits before kernels are recognised")


@dataclass(frozen=True, slots=True)
class Linear(_Kernel):
    """`einsum(x, weight) + bias`: x and weight share the contracted axes and no other.

    Attributes:
        x_axes: the axes of x.
        weight_axes: the axes of the weight.
        bias_axes: the axes of the bias, all of them of the weight alone; None without a bias.
        out_axes: the axes of the result.
    """

    x_axes: Axes
    weight_axes: Axes
    bias_axes: Axes | None
    out_axes: Axes

    @property
    def name(self) -> str:
        text = write_einsum((self.x_axes, self.weight_axes), self.out_axes)
        return f"linear_{text}" + ("" if self.bias_axes is None else "+" + write_einsum((self.bias_axes,), ())[:-2])

    def infer(self, node: Circuit) -> tuple[Shape, torch.dtype | None]:
        x, weight, *bias = node.children
        product = Einsum((x, self.x_axes), (weight, self.weight_axes), out_axes=self.out_axes, name=None)
        if bias and self.bias_axes is not None:
            sizes = dict(zip(self.out_axes, product.shape, strict=True))
            if tuple(sizes.get(axis) for axis in self.bias_axes) != bias[0].shape:
                raise ShapeError(f"{self.name}: bias {bias[0]!r} does not fit {product!r}", hint="one size an axis")
        return product.shape, join_dtypes(node, node.children)

    def apply(self, *tensors: torch.Tensor) -> torch.Tensor:
        x, weight, *bias = tensors
        out = torch.einsum(x, list(self.x_axes), weight, list(self.weight_axes), list(self.out_axes))
        if not bias or self.bias_axes is None:
            return out
        order = [self.bias_axes.index(axis) for axis in self.out_axes if axis in self.bias_axes]
        sizes = [size if axis in self.bias_axes else 1 for axis, size in zip(self.out_axes, out.shape, strict=True)]
        return out + bias[0].permute(order).reshape(sizes)


@dataclass(frozen=True, slots=True)
class LayerNorm(_Kernel):
    """Layer normalisation of the last axis, with scale and bias: children x [..., h], scale [h], bias [h]."""

    eps: float

    @property
    def name(self) -> str:
        return f"layer_norm_{self.eps!r}"

    def infer(self, node: Circuit) -> tuple[Shape, torch.dtype | None]:
        return node.children[0].shape, join_dtypes(node, node.children)

    def apply(self, *tensors: torch.Tensor) -> torch.Tensor:
        x, scale, bias = tensors
        return torch.nn.functional.layer_norm(x, x.shape[-1:], scale, bias, self.eps)


@dataclass(frozen=True, slots=True)
class RMSNorm(_Kernel):
    """Root-mean-square normalisation of the last axis, with scale: children x [..., h], scale [h]."""

    eps: float

    @property
    def name(self) -> str:
        return f"rms_norm_{self.eps!r}"

    def infer(self, node: Circuit) -> tuple[Shape, torch.dtype | None]:
        return node.children[0].shape, join_dtypes(node, node.children)

    def apply(self, *tensors: torch.Tensor) -> torch.Tensor:
        x, scale = tensors
        return torch.nn.functional.rms_norm(x, x.shape[-1:], scale, self.eps)


@dataclass(frozen=True, slots=True)
class Rotary(_Kernel):
    """Rotary position embedding (Su et al. 2021), halves turned: `x * cos + rotate_half(x) * sin`.

    Children x [..., c], cos and sin, which are broadcast to x and have its last axis.
    """

    @property
    def name(self) -> str:
        return "rotary"

    def infer(self, node: Circuit) -> tuple[Shape, torch.dtype | None]:
        x, *tables = node.children
        for table in tables:
            aligned = x.shape[x.rank - table.rank :]
            fits = 0 < table.rank <= x.rank and table.shape[-1] == x.shape[-1]
            if not fits or any(size not in (1, whole) for size, whole in zip(table.shape, aligned, strict=True)):
                raise ShapeError(f"{self.name}: {table!r} does not fit {x!r}", hint="[..., c], its other axes x's or 1")
        if not isinstance(x.shape[-1], int) or x.shape[-1] % 2:
            raise ShapeError(f"{self.name}: the last axis of {x!r} has no two halves", hint="an even size")
        return x.shape, join_dtypes(node, node.children)

    def apply(self, *tensors: torch.Tensor) -> torch.Tensor:
        x, cos, sin = tensors
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin


@dataclass(frozen=True, slots=True)
class Attention(_Kernel):
    """Softmax attention: queries [..., q, c], keys [..., k, c], values [..., k, v], perhaps a mask [q, k] of 0 and 1.

    Keys and values may have fewer heads (the axis before the last two) than queries, which then share them: each
    head of keys serves as many queries' heads, one behind the other (Ainslie et al. 2023).

    Attributes:
        scale: factor of the scores.
        causal: whether a query attends to keys at its own place and before only (as many queries as keys).
    """

    scale: float
    causal: bool

    @property
    def name(self) -> str:
        return f"attention_{'causal_' * self.causal}{self.scale!r}"

    @staticmethod
    def group(node: Circuit) -> int:
        """How many heads of queries share one of keys."""
        heads, shared = (child.shape[-3] if child.rank > 2 else 1 for child in node.children[:2])
        divisible = isinstance(heads, int) and isinstance(shared, int) and shared > 0 and heads % shared == 0
        return heads // shared if divisible else 1  # type: ignore[operator]

    def infer(self, node: Circuit) -> tuple[Shape, torch.dtype | None]:
        q, k, v = node.children[:3]
        unifier = Unifier()
        try:
            batch = tuple(unifier.unify(a, b) for a, b in zip(k.shape[:-2], v.shape[:-2], strict=True))
            if self.group(node) > 1:
                batch = (*batch[:-1], q.shape[-3])
            batch = tuple(unifier.unify(a, b) for a, b in zip(q.shape[:-2], batch, strict=True))
            unifier.unify(q.shape[-1], k.shape[-1])
            unifier.unify(k.shape[-2], v.shape[-2])
        except (SizeMismatch, ValueError):
            shapes = ", ".join(format_shape(child.shape) for child in (q, k, v))
            raise ShapeError(
                f"{self.name}: {shapes} do not fit", hint="[..., q, c], [..., k, c], [..., k, v]"
            ) from None
        return (*batch, q.shape[-2], v.shape[-1]), join_dtypes(node, node.children[:3])

    def apply(self, *tensors: torch.Tensor) -> torch.Tensor:
        q, k, v, *mask = tensors
        if k.shape[:-2] != q.shape[:-2]:
            k, v = (each.repeat_interleave(q.shape[-3] // k.shape[-3], -3) for each in (k, v))
        scores = self.scale * (q @ k.transpose(-1, -2))
        allowed = mask[0].bool() if mask else None
        if self.causal:
            allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        if allowed is not None:
            scores = scores.masked_fill(~allowed, float("-inf"))
        return torch.softmax(scores, -1) @ v


def _read_linear(x: str, weight: str, out: str, bias: str | None) -> Linear:
    return Linear(read_axes(x), read_axes(weight), None if bias is None else read_axes(bias), read_axes(out))


KERNEL_READERS: tuple[tuple[re.Pattern[str], Callable[..., Function]], ...] = (
    (re.compile(r"linear_(\w+),(\w+)->(\w+)(?:\+(\w+))?"), _read_linear),
    (re.compile(r"layer_norm_(\S+)"), lambda eps: LayerNorm(float(eps))),
    (re.compile(r"rms_norm_(\S+)"), lambda eps: RMSNorm(float(eps))),
    (re.compile(r"rotary"), Rotary),
    (re.compile(r"attention_(causal_)?(\S+)"), lambda causal, scale: Attention(float(scale), causal is not None)),
)
"""For every kernel what its name looks like, and how it is made of the parts."""
