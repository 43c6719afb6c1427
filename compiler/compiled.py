"""What compiling gives: a callable with named inputs that knows what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from tapeout.compiler.cost import Cost
from tapeout.compiler.inputs import Input, check_values
from tapeout.ir import Circuit
from tapeout.passes import PassRecord


class Executable(Protocol):
    """What a backend makes: something to call with tensors, and to move."""

    source: str

    def __call__(self, *values: torch.Tensor) -> Any:
        """The roots' values: one tensor, or a tuple of them."""

    def to(self, device: torch.device) -> Executable:
        """The same on another device."""


class Compiled:
    """A compiled circuit: call it with its inputs by name.

    Attributes:
        backend: what runs it.
        inputs: the inputs.
        roots: the optimised circuits.
        passes: the execution passes that ran.
        dtype: the dtype of floating values.
        device: where it runs.
    """

    def __init__(
        self,
        backend: str,
        executable: Executable,
        inputs: Sequence[Input],
        roots: Sequence[Circuit],
        origins: Mapping[Circuit, str],
        passes: Sequence[PassRecord],
        dtype: torch.dtype,
        device: torch.device,
        packed_bytes: int,
    ) -> None:
        self.backend = backend
        self.inputs = tuple(inputs)
        self.roots = tuple(roots)
        self.origins = dict(origins)
        self.passes = tuple(passes)
        self.dtype = dtype
        self.device = device
        self._executable = executable
        self._packed_bytes = packed_bytes

    def __call__(self, **values: torch.Tensor) -> Any:
        """The value, one row an entry of the batch; a tuple if several circuits were compiled together.

        Raises:
            ModuleBindingError, ShapeError, TypeMismatchError, DataError: for inputs that are wrong.
        """
        return self._executable(*check_values(self.inputs, values, self.device))

    @property
    def source(self) -> str:
        """What runs, as code to read."""
        return self._executable.source

    def cost(self, batch: int = 1) -> Cost:
        """What one call on that many rows costs."""
        return Cost.of(self.roots, batch, self.dtype, self._packed_bytes)

    def to(self, device: torch.device | str) -> Compiled:
        """The same on another device."""
        where = torch.device(device)
        return Compiled(
            self.backend, self._executable.to(where), self.inputs, self.roots, self.origins, self.passes, self.dtype, where,
            self._packed_bytes,
        )  # fmt: skip

    def __repr__(self) -> str:
        names = ", ".join(each.name for each in self.inputs)
        return f"<Compiled {self.backend} ({names}) {str(self.dtype).removeprefix('torch.')} on {self.device}>"
