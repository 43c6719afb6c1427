"""`Tag`: a node that is the same as its child, and yet unlike any other."""

from __future__ import annotations

from uuid import UUID, uuid4

import torch

from tapeout.ir.circuit import _AUTONAME, OPERATORS, Circuit, auto_name
from tapeout.ir.index_rules import AxisIndices, Pushed
from tapeout.ir.sizes import Shape


class Tag(Circuit):
    """Its child under a uuid: two tags of one node are different nodes of the same value."""

    __slots__ = ()

    def __new__(cls, node: Circuit, uuid: UUID, name: str | None = _AUTONAME) -> Tag:
        return cls._make((uuid,), (node,), auto_name(name, [node], "{} tag", bracketed=OPERATORS))

    @staticmethod
    def new_with_random_uuid(node: Circuit, name: str | None = _AUTONAME) -> Tag:
        return Tag(node, uuid4(), name)

    @property
    def node(self) -> Circuit:
        return self.children[0]

    @property
    def uuid(self) -> UUID:
        return self.attributes[0]  # type: ignore[no-any-return]

    def _infer(self) -> tuple[Shape, torch.dtype | None]:
        return self.children[0].shape, self.children[0].torch_dtype

    def _expand(self, children: tuple[Circuit, ...]) -> Circuit:
        return self._make(tuple(self.attributes), children, self.op_name)

    def push_index(self, index: AxisIndices) -> Pushed:
        """Passes through."""
        return Pushed(index, ((self.node, index),), self.with_children)

    def _text(self) -> str:
        return str(self.uuid)
