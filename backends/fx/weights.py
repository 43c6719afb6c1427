"""The constants of a GraphModule: one attribute for each distinct view of memory, under a readable name."""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Any

import torch

from tapeout.ir import Array, Circuit, Index, Rearrange
from tapeout.ir.axis_index import apply_index
from tapeout.ir.sizes import is_concrete

_WORD = re.compile(r"\W+")


def identifier(name: str) -> str:
    """The name as a Python identifier: `a0.h3` is `a0_h3`."""
    word = _WORD.sub("_", name).strip("_")
    return word if word and not word[0].isdigit() else f"n_{word}"


def unused(base: str, taken: Container[str]) -> str:
    """The name, with a number behind it if it is taken."""
    chosen, number = base, 1
    while chosen in taken:
        number += 1
        chosen = f"{base}_{number}"
    return chosen


class Weights:
    """The constants that a graph reads, moved to one dtype and device, each held once.

    Args:
        dtype: floating constants are cast to it.
        device: where constants are moved; None for where they are.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device | None) -> None:
        self.dtype, self.device = dtype, device
        self.tensors: dict[str, torch.Tensor] = {}
        self.packed_bytes = 0
        self._moved: dict[tuple[Any, ...], torch.Tensor] = {}
        self._names: dict[tuple[Any, ...], str] = {}

    def value(self, node: Circuit) -> torch.Tensor | None:
        """The tensor of a constant seen through Index and Rearrange; None if the node is something else.

        A constant that is repeated along the batch is something else: how often is known at run time.
        """
        chain: list[Circuit] = []
        while isinstance(node, Index | Rearrange) and is_concrete(node.shape):
            chain.append(node)
            node = node.children[0]
        if not isinstance(node, Array):
            return None
        value = self._move(node.value)
        for each in reversed(chain):
            value = apply_index(value, each.axis_indices) if isinstance(each, Index) else rearranged(each, value)
        return value

    def add(self, value: torch.Tensor, name: str, content: str | None = None) -> str:
        """The attribute that holds the tensor; a new one, called after `name`, for memory (or content) not seen before."""
        key: tuple[Any, ...] = (value.data_ptr(), tuple(value.shape), value.stride(), value.dtype)
        if content is not None:
            key = (content,)
        if key not in self._names:
            chosen = unused(identifier(name), self.tensors)
            self._names[key] = chosen
            self.tensors[chosen] = value
        return self._names[key]

    def pack(self, value: torch.Tensor, shape: list[int]) -> torch.Tensor:
        """The tensor reshaped: a view if it can be, else a copy, which is counted."""
        out = value.reshape(shape)
        if out.untyped_storage().data_ptr() != value.untyped_storage().data_ptr():
            self.packed_bytes += out.numel() * out.element_size()
        return out

    def register(self, module: torch.nn.Module) -> None:
        """Hangs the tensors into the module: floating ones as parameters without gradient, others as buffers."""
        for name, value in self.tensors.items():
            if value.is_floating_point():
                module.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))
            else:
                module.register_buffer(name, value)

    def _move(self, value: torch.Tensor) -> torch.Tensor:
        target = self.dtype if value.is_floating_point() else value.dtype
        if value.dtype is target and (self.device is None or value.device == self.device):
            return value
        key = (value.data_ptr(), tuple(value.shape), value.stride(), value.dtype)
        if key not in self._moved:
            self._moved[key] = value.to(device=self.device, dtype=target)
        return self._moved[key]


def rearranged(node: Rearrange, value: torch.Tensor) -> torch.Tensor:
    """The tensor rearranged as the node says; a view where it can be."""
    spec = node.spec
    sizes = [int(size) for size in spec.sizes(tuple(value.shape))]  # type: ignore[arg-type]
    before = [number for group in spec.input_ints for number in group]
    after = [number for group in spec.output_ints for number in group]
    value = value.reshape([sizes[number] for number in before])
    gone = [i for i, number in enumerate(before) if number not in after]
    value = value.squeeze(gone) if gone else value
    left = [number for number in before if number in after]
    value = value.permute([left.index(number) for number in after if number in left])
    for i, number in enumerate(after):
        if number not in left:
            value = value.unsqueeze(i)
    value = value.expand([sizes[number] for number in after])
    return value.reshape([_product(sizes[number] for number in group) for group in spec.output_ints])


def _product(sizes: Any) -> int:
    out = 1
    for size in sizes:
        out *= size
    return out
