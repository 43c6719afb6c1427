"""What a backend makes of a program."""

from __future__ import annotations

from typing import Any, Protocol

import torch


class Executable(Protocol):
    """Something to call with tensors, and to move.

    Attributes:
        is_capturable: whether its calls on CUDA can be captured in CUDA graphs.
    """

    is_capturable: bool

    @property
    def source(self) -> str:
        """What runs, as code to read."""

    def __call__(self, *values: torch.Tensor) -> Any:
        """The roots' values: one tensor, or a tuple of them."""

    def to(self, device: torch.device) -> Executable:
        """The same on another device."""
