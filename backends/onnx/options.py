"""What can be chosen about an ONNX model and how it runs."""

from __future__ import annotations

from dataclasses import dataclass

from tapeout.ir.errors import UnsupportedError

OPSETS = range(13, 27)
"""Opsets that can be written: from the first with axes as inputs to the last that ONNX Runtime 1.31 takes."""


@dataclass(frozen=True, slots=True)
class OnnxOptions:
    """Options of `compile(..., backend="onnx")`.

    Attributes:
        opset: the version of ONNX's operators; what an older one lacks is taken apart.
        attention_op: whether attention is ONNX's operator for it (from opset 23), or products and a softmax.
        external_data: whether a saved model's weights lie in a file beside it; beyond 2 GB they always do.
        threads: how many threads an operator may use; None for as many as torch.
        arena: whether ONNX Runtime keeps memory between calls.

    Raises:
        UnsupportedError: for an opset that is not known, or fewer threads than one.
    """

    opset: int = 23
    attention_op: bool = True
    external_data: bool = False
    threads: int | None = None
    arena: bool = True

    def __post_init__(self) -> None:
        if self.opset not in OPSETS:
            raise UnsupportedError(
                f"opset {self.opset} cannot be written", hint=f"use one from {OPSETS[0]} to {OPSETS[-1]}"
            )
        if self.threads is not None and self.threads < 1:
            raise UnsupportedError(f"{self.threads} threads run nothing", hint="use 1 or more, or None for torch's")
