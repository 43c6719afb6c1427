"""How products are computed where a device leaves a choice: in TF32 or not, the same each time or not.

torch keeps these choices for the whole process. What is compiled keeps its own: they are set for a call, and put
back after it, so that a circuit gives the same numbers whatever the program around it has chosen.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from tapeout.ir.errors import UnsupportedError

_WORKSPACE, _REPEATABLE = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
"""cuBLAS gives the same result each time only with one of these workspaces (its manual, "Results reproducibility")."""


@dataclass(frozen=True, slots=True)
class Numerics:
    """The choices. Products of bfloat16 are always summed in float32.

    Attributes:
        tf32: whether products of float32 on CUDA may round their operands to TF32 (10 bits behind the point).
        deterministic: whether a call gives the same bits each time, even where that is slower.

    Raises:
        UnsupportedError: if cuBLAS was not told to be deterministic before torch began to use it.
    """

    tf32: bool = False
    deterministic: bool = False

    @contextmanager
    def applied(self, device: torch.device) -> Iterator[None]:
        """Inside, torch computes like this on the device. Other threads that compute there see it too."""
        if device.type != "cuda":
            yield
            return
        matmul = torch.backends.cuda.matmul
        before = (
            torch.get_float32_matmul_precision(),
            matmul.allow_bf16_reduced_precision_reduction,
            torch.are_deterministic_algorithms_enabled(),
        )
        wanted = ("high" if self.tf32 else "highest", False, self.deterministic or before[2])
        if before == wanted:
            yield
            return
        _set(*wanted)
        try:
            yield
        finally:
            _set(*before)

    def check(self, device: torch.device) -> None:
        """Raises UnsupportedError for what the device cannot do."""
        if self.deterministic and device.type == "cuda" and os.environ.get(_WORKSPACE) not in _REPEATABLE:
            raise UnsupportedError(
                f"deterministic=True on {device}, and {_WORKSPACE} is {os.environ.get(_WORKSPACE)!r}",
                hint=f"start Python with {_WORKSPACE}={_REPEATABLE[0]}: cuBLAS reads it once",
            )


def _set(precision: str, reduced: bool, deterministic: bool) -> None:
    torch.set_float32_matmul_precision(precision)
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = reduced
    if torch.are_deterministic_algorithms_enabled() != deterministic:
        torch.use_deterministic_algorithms(deterministic)
