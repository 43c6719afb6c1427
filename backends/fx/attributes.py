"""The constants of a GraphModule: one attribute for each distinct view of memory, under a readable name."""

from __future__ import annotations

import keyword
import re
from typing import Any

import torch
from torch import fx

from tapeout.backends.common.weights import Weights, place_of, unused

_NO_WORD = re.compile(r"\W+", re.ASCII)  # TorchScript reads no other letters
_NO_NAMES = frozenset(
    (*map(str.lower, keyword.kwlist), *"self torch device inf nan pytree fx_pytree nonetype ellipsis".split())
)
"""What means something else in the code that torch.fx writes, or to TorchScript; fx writes `Self` as `self`."""
_OF_MODULES = frozenset((*dir(torch.nn.Module()), *dir(fx.GraphModule)))
"""What modules have already: no attributes for tensors."""


def identifier(name: str) -> str:
    """The name as an identifier of Python and of TorchScript: `a0.h3` is `a0_h3`."""
    word = _NO_WORD.sub("_", name).strip("_")
    return word if word and not word[0].isdigit() and word.lower() not in _NO_NAMES else f"n_{word}"


class Attributes(Weights):
    """Weights that hang in a module, each held once."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(dtype, device)
        self.tensors: dict[str, torch.Tensor] = {}
        self._names: dict[tuple[Any, ...], str] = {}

    def add(self, value: torch.Tensor, name: str, content: str | None = None) -> str:
        """The attribute that holds the tensor.

        A new one, called after `name`, for memory (or content) not seen before.
        """
        key = place_of(value)
        if content is not None:
            key = (content,)
        if key not in self._names:
            chosen = unused(identifier(name), self.tensors.keys() | _OF_MODULES)
            self._names[key] = chosen
            self.tensors[chosen] = value
        return self._names[key]

    def register(self, module: torch.nn.Module) -> None:
        """Hangs the tensors into the module: floating ones as parameters without gradient, others as buffers."""
        for name, value in self.tensors.items():
            if value.is_floating_point():
                module.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))
            else:
                module.register_buffer(name, value)
