"""Dtypes: how rules join them, and how constants are moved between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tapeout.ir.circuit import Circuit
from tapeout.ir.errors import TypeMismatchError


def join_dtypes(node: Circuit, children: Sequence[Circuit]) -> torch.dtype | None:
    """The children's common dtype; None if all of theirs are undetermined.

    Raises:
        TypeMismatchError: if two known dtypes differ.
    """
    out: torch.dtype | None = None
    for child in children:
        dtype = child.torch_dtype
        if dtype is None or dtype is out:
            continue
        if out is not None:
            raise TypeMismatchError(
                f"the children of {node.kind} {node.name!r} have different dtypes: {dtype_name(out)} and "
                f"{dtype_name(dtype)}",
                facts=[f"{each!r}: {each.dtype or 'undetermined'}" for each in children],
                hint="dtypes never mix: cast the constants (cast_circuit) or insert GeneralFunction.new_cast",
            )
        out = dtype
    return out


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """The torch dtype of that name.

    Raises:
        TypeMismatchError: if there is none.
    """
    found = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise TypeMismatchError(
            f"no dtype is called {dtype!r}", hint='use a torch dtype or its name, such as "float32"'
        )
    return found


@dataclass(frozen=True, slots=True)
class TorchDeviceDtypeOp:
    """A device and a dtype, each None for "as it is"; both are kept by their names.

    Raises:
        TypeMismatchError: if no dtype has that name.
    """

    device: str | None = None
    dtype: str | torch.dtype | None = None

    def __post_init__(self) -> None:
        # torch.float32 and "float32" are one dtype, and so must be two casts to it.
        object.__setattr__(self, "device", None if self.device is None else str(self.device))
        object.__setattr__(self, "dtype", None if self.dtype is None else dtype_name(as_dtype(self.dtype)))

    @staticmethod
    def default() -> TorchDeviceDtypeOp:
        """As it is."""
        return TorchDeviceDtypeOp()

    def get_torch_dtype(self) -> torch.dtype | None:
        return None if self.dtype is None else as_dtype(self.dtype)

    def cast_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(device=self.device, dtype=self.get_torch_dtype())


@dataclass(frozen=True, slots=True)
class TorchDeviceDtype:
    """A device and a dtype, both kept by their names.

    Raises:
        TypeMismatchError: if no dtype has that name.
    """

    device: str
    dtype: str | torch.dtype

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", str(self.device))
        object.__setattr__(self, "dtype", dtype_name(as_dtype(self.dtype)))

    def get_torch_dtype(self) -> torch.dtype:
        return as_dtype(self.dtype)

    def op(self) -> TorchDeviceDtypeOp:
        return TorchDeviceDtypeOp(self.device, self.dtype)

    def cast_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.op().cast_tensor(tensor)

    @staticmethod
    def from_tensor(tensor: torch.Tensor) -> TorchDeviceDtype:
        return TorchDeviceDtype(str(tensor.device), dtype_name(tensor.dtype))
