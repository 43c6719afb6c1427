"""The fx backend as something to call."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import fx

from tapeout.backends.common.numerics import Numerics
from tapeout.backends.common.program import Program
from tapeout.backends.fx.lower import lower
from tapeout.backends.fx.source import readable


class FxExecutable:
    """A GraphModule to call.

    Attributes:
        module: the GraphModule. Its weights are parameters that want no gradient; set `requires_grad` on
            them, or give inputs that want one, and call `module` itself: calls of this object record nothing.
        device: where it runs.
        numerics: how its products are computed.
    """

    is_capturable = True

    def __init__(self, module: fx.GraphModule, device: torch.device, numerics: Numerics = Numerics()) -> None:  # noqa: B008
        self.module = module
        self.device = device
        self.numerics = numerics

    @property
    def source(self) -> str:
        return readable(self.module.code)

    def __call__(self, *values: torch.Tensor) -> Any:
        with self.numerics.applied(self.device), torch.inference_mode():
            return self.module(*values)

    def to(self, device: torch.device) -> FxExecutable:
        return FxExecutable(deepcopy(self.module).to(device), device, self.numerics)


def build(program: Program) -> tuple[FxExecutable, int]:
    """The executable, and the bytes of weights copied into another layout."""
    module, packed = lower(program)
    return FxExecutable(module, program.device, program.numerics), packed
