"""The TorchScript backend as something to call.

TorchScript is deprecated upstream. What is left to it here: a file that runs in a process without tapeout,
from C++ as well as from Python.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import fx

from tapeout.backends.common.numerics import Numerics
from tapeout.backends.common.program import Program
from tapeout.backends.common.quiet import without_known_warnings
from tapeout.backends.fx.lower import lower
from tapeout.ir.errors import ArtefactError, LoweringError, UnsupportedError


class TorchScriptExecutable:
    """A scripted and frozen module.

    Attributes:
        script: what runs.
        device: where it runs.
        module: the fx module that it was made of; None if it was loaded.
        numerics: how its products are computed.
    """

    is_capturable = False

    def __init__(
        self,
        script: torch.jit.ScriptModule,
        device: torch.device,
        module: fx.GraphModule | None = None,
        numerics: Numerics = Numerics(),  # noqa: B008
    ) -> None:
        self.script = script
        self.device = device
        self.module = module
        self.numerics = numerics

    @property
    def source(self) -> str:
        return str(self.script.code)

    def __call__(self, *values: torch.Tensor) -> Any:
        with self.numerics.applied(self.device), torch.inference_mode():
            return self.script(*values)

    def to(self, device: torch.device) -> TorchScriptExecutable:
        """The same on another device, scripted anew.

        Raises:
            UnsupportedError: if it was loaded: a frozen module holds its weights as constants.
        """
        from copy import deepcopy

        if device == self.device:
            return self
        if self.module is None:
            raise UnsupportedError(
                f"a TorchScript module that was loaded cannot move to {device}",
                hint="compile the circuit for that device, or load with backend fx",
            )
        return scripted(deepcopy(self.module).to(device), device, self.numerics)

    def save(self, path: Path) -> None:
        """Writes the module: `torch.jit.load` reads it, without tapeout."""
        with without_known_warnings():
            content = self.script.save_to_buffer()
        path.write_bytes(content)  # torch's own writer ends the process when a disk is full


def build(program: Program) -> tuple[TorchScriptExecutable, int]:
    """The executable, and the bytes of weights copied into another layout.

    Raises:
        LoweringError: if TorchScript refuses the fx module.
    """
    module, packed = lower(program)
    return scripted(module, program.device, program.numerics), packed


def scripted(module: fx.GraphModule, device: torch.device, numerics: Numerics = Numerics()) -> TorchScriptExecutable:  # noqa: B008
    """The module scripted and frozen.

    Raises:
        LoweringError: if TorchScript refuses it.
    """
    try:
        with without_known_warnings():
            script = torch.jit.freeze(torch.jit.script(module.eval()))
    except (RuntimeError, TypeError) as error:
        raise LoweringError(
            f"TorchScript refuses the fx module: {str(error).strip().splitlines()[0]}",
            facts=str(error).strip().splitlines()[1:12],
            hint="use backend='fx' or 'inductor', and report it with the circuit's text",
        ) from error
    return TorchScriptExecutable(script, device, module, numerics)


def load(path: Path, device: torch.device, numerics: Numerics = Numerics()) -> TorchScriptExecutable:  # noqa: B008
    """Reads a module that was saved.

    Raises:
        ArtefactError: if it cannot be read.
    """
    try:
        with without_known_warnings():
            script = torch.jit.load(str(path), map_location=device)
        return TorchScriptExecutable(script, device, numerics=numerics)
    except (RuntimeError, ValueError, OSError) as error:
        raise ArtefactError(
            f"{path} is no TorchScript module: {str(error).strip().splitlines()[0]}", hint="save it again"
        ) from error
