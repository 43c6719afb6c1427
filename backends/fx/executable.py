"""The fx backend as something to call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from tapeout.backends.fx.lower import lower
from tapeout.ir import Circuit, Symbol


class FxExecutable:
    """A GraphModule and its source."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module

    @property
    def source(self) -> str:
        return self.module.code

    def __call__(self, *values: torch.Tensor) -> Any:
        with torch.inference_mode():
            return self.module(*values)

    def to(self, device: torch.device) -> FxExecutable:
        from copy import deepcopy

        return FxExecutable(deepcopy(self.module).to(device))


def build(
    roots: Sequence[Circuit],
    inputs: Sequence[Symbol],
    origins: Mapping[Circuit, str],
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[FxExecutable, int]:
    """The executable, and the bytes of weights copied into another layout."""
    module, weights = lower(roots, inputs, origins, dtype, device)
    return FxExecutable(module), weights.packed_bytes
