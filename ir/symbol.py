"""`Symbol`: an input of a circuit, or a variable that a module binds."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID, uuid4

import torch

from tapeout.ir.circuit import Circuit
from tapeout.ir.sizes import Shape, SizeIn, as_shape


class Symbol(Circuit):
    """An input or a bound variable, identified by uuid, shape, dtype and name.

    Args:
        shape: sizes, `None` for one that nothing is known of.
        uuid: what distinguishes it from another symbol of the same name and shape.
        name: the node's name.
        dtype: its dtype, or None while it is undetermined.
    """

    __slots__ = ()

    def __new__(
        cls, shape: Iterable[SizeIn], uuid: UUID, name: str | None = None, dtype: torch.dtype | None = None
    ) -> Symbol:
        return cls._make((uuid, as_shape(shape), dtype), (), name)

    @staticmethod
    def new_with_random_uuid(
        shape: Iterable[SizeIn], name: str | None = None, dtype: torch.dtype | None = None
    ) -> Symbol:
        """A symbol unlike any other."""
        return Symbol(shape, uuid4(), name, dtype)

    @staticmethod
    def new_with_none_uuid(
        shape: Iterable[SizeIn], name: str | None = None, dtype: torch.dtype | None = None
    ) -> Symbol:
        """A symbol with the all-zero uuid: two of the same shape, dtype and name are the same."""
        return Symbol(shape, UUID(int=0), name, dtype)

    @property
    def uuid(self) -> UUID:
        return self.attributes[0]  # type: ignore[no-any-return]

    def conform(self, shape: Iterable[SizeIn], dtype: torch.dtype | None = None) -> Symbol:
        """The same symbol (uuid and name) with another shape and, if given, dtype."""
        return Symbol(shape, self.uuid, self.op_name, dtype or self.torch_dtype)

    def _infer(self) -> tuple[Shape, torch.dtype | None]:
        return self.attributes[1], self.attributes[2]

    def _own_free_symbols(self) -> frozenset[Symbol]:
        return frozenset((self,))

    def _text(self) -> str:
        return str(self.uuid) if self.torch_dtype is None else f"{self.uuid} {self.dtype}"
