"""Dtypes and devices: what numbers, which have none of their own, take from the nodes beside them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tapeout.ir import Circuit
from tapeout.ir.dtypes import dtype_name
from tapeout.ir.errors import TypeMismatchError


class Context:
    """What a rule needs beside its children's values: dtypes, and the device of numbers."""

    def __init__(self, dtype: torch.dtype | None, stored: Sequence[torch.Tensor]) -> None:
        self.dtype = dtype
        self.device = stored[0].device if stored else torch.device("cpu")
        floats = [value.dtype for value in stored if value.is_floating_point()]
        self.result_dtype = dtype or (floats[0] if floats else torch.float64)

    def dtype_of(self, node: Circuit) -> torch.dtype:
        """The dtype of the node's value."""
        known = node.torch_dtype or torch.float64
        return self.dtype if self.dtype is not None and known.is_floating_point else known

    def alike(self, node: Circuit, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The children's values, numbers among them with the dtype and device of the rest."""
        dtype = self.dtype_of(node)
        if all(tensor.dtype is dtype for tensor in tensors):
            return list(tensors)
        known = (t for c, t in zip(node.children, tensors, strict=True) if c.torch_dtype is not None)
        device = next(known, tensors[0]).device
        return [
            tensor if child.torch_dtype is not None else as_dtype_exactly(tensor, dtype, child).to(device)
            for child, tensor in zip(node.children, tensors, strict=True)
        ]


def as_dtype_exactly(number: torch.Tensor, dtype: torch.dtype, node: Circuit) -> torch.Tensor:
    """The value of a node without a dtype of its own, in the dtype of the nodes beside it.

    Raises:
        TypeMismatchError: if these are integers and it is no whole number.
    """
    if not dtype.is_floating_point and bool((number != number.round()).any()):
        raise TypeMismatchError(
            f"{node!r} is no whole number and stands beside integers ({dtype_name(dtype)})",
            hint="cast the integers to a floating dtype first (GeneralFunction.new_cast)",
        )
    return number.to(dtype)
