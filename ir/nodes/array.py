"""`Array`: a constant tensor, identified by its content."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from tapeout.ir.circuit import Circuit
from tapeout.ir.errors import TypeMismatchError
from tapeout.ir.hashing import HASH_DIGITS, hash_tensor
from tapeout.ir.sizes import Shape

_by_memory: dict[tuple[Any, ...], weakref.ref[Array]] = {}


class Array(Circuit):
    """A constant tensor. Never copied: the node keeps a reference to `value`.

    Two Arrays are the same node if dtype, shape, device, content and name are the same.

    Args:
        value: the tensor. It must not be written to afterwards; if it is, evaluation raises.
        name: the node's name.

    Raises:
        TypeMismatchError: if `value` is no tensor.
    """

    __slots__ = ("_value", "_version")

    _value: torch.Tensor
    _version: int

    def __new__(cls, value: torch.Tensor, name: str | None = None) -> Array:
        if not isinstance(value, torch.Tensor):
            raise TypeMismatchError(
                f"an Array holds a torch.Tensor, not {type(value).__name__} (name {name!r})",
                hint="wrap numbers with torch.tensor(...), or use Scalar for one number",
            )
        value = value.detach()
        place = _place(value)
        seen = _by_memory.get(place)
        known = seen() if seen is not None else None
        # The known node keeps its storage alive, so equal addresses mean the same memory.
        digest = known.tensor_hash if known is not None else hash_tensor(value)
        node = cls._make((digest, tuple(value.shape), value.dtype, str(value.device)), (), name)
        if not node._is_sound():
            node._value, node._version = value, _version_of(value)
        if known is None:
            _remember_place(place, node)
        return node

    @staticmethod
    def randn(
        *shape: int, name: str | None = None, dtype: torch.dtype = torch.float32, seed: int | None = None
    ) -> Array:
        """An array of normally distributed numbers; from `seed`, if given, and never from global state then."""
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return Array(torch.randn(shape, dtype=dtype, generator=generator), name)

    @property
    def value(self) -> torch.Tensor:
        """The tensor.

        Raises:
            TypeMismatchError: if it was written to since the node was built.
        """
        if not self._is_sound():
            raise TypeMismatchError(
                f"the tensor of Array {self.name!r} {list(self.shape)} was written to after the node was built",
                hint="build the Array from a tensor that stays as it is, for instance value.clone()",
            )
        return self._value

    @property
    def tensor_hash(self) -> str:
        """128-bit content hash as hexadecimal text."""
        return self.attributes[0]  # type: ignore[no-any-return]

    def _adopt(self, original: Circuit) -> None:
        if isinstance(original, Array) and not self._is_sound():
            self._value, self._version = original._value, original._version

    def _is_sound(self) -> bool:
        """Whether it has a tensor, and that was not written to."""
        return hasattr(self, "_value") and _version_of(self._value) == self._version

    def _infer(self) -> tuple[Shape, torch.dtype | None]:
        return self.attributes[1], self.attributes[2]

    def _text(self) -> str:
        return f"{self.tensor_hash[:HASH_DIGITS]} {self.dtype}"


def _version_of(value: torch.Tensor) -> int:
    return -1 if value.is_inference() else value._version


def _place(value: torch.Tensor) -> tuple[Any, ...]:
    return (
        value.data_ptr(), value.device, value.dtype, tuple(value.shape), value.stride(), _version_of(value)
    )  # fmt: skip


def _remember_place(place: tuple[Any, ...], node: Array) -> None:
    if _place(node._value) == place:  # else the node was there already, with another tensor of equal content
        _by_memory[place] = weakref.ref(node, lambda _: _by_memory.pop(place, None))
