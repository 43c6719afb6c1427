"""Ahead-of-time packages: the compiled code and the weights in one file, run without a compiler.

A package checks nothing: a longer prompt gives a wrong shape, int32 tokens are read as int64. Whoever calls
it checks first, as `tapeout.compiler.run_artefact` does.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import fx

from tapeout.backends.common.numerics import Numerics
from tapeout.backends.common.quiet import without_known_warnings
from tapeout.backends.common.rows import filled_up, first_rows
from tapeout.backends.inductor.examples import EXAMPLE_ROWS, LEAST_ROWS, examples
from tapeout.backends.inductor.freezing import options
from tapeout.ir import Symbol
from tapeout.ir.errors import ArtefactError, LoweringError, UnsupportedError

_OPTIONS = {"always_keep_tensor_constants": True}
"""Without it, torch 2.13 writes constants that are single numbers into the code and then fails to reshape them."""


def package(
    module: fx.GraphModule,
    inputs: Sequence[Symbol],
    device: torch.device,
    path: Path,
    rows: int = EXAMPLE_ROWS,
) -> None:
    """Compiles the module for batches of two rows and more and writes it, with its weights, to `path` (`.pt2`).

    Args:
        rows: a typical batch size.

    Raises:
        LoweringError: if it cannot be exported or compiled.
        UnsupportedError: if a size besides the batch is open.
    """
    from torch._inductor import aoti_compile_and_package

    values = examples(inputs, device, rows)
    if values is None:
        raise UnsupportedError("a package has inputs with open sizes besides the batch", hint="bind all sizes")
    batch = torch.export.Dim("rows", min=LEAST_ROWS)
    content = BytesIO()
    try:
        with without_known_warnings(), torch.no_grad():
            exported = torch.export.export(module, tuple(values), dynamic_shapes=[{0: batch} for _ in values] or None)
            settings = _OPTIONS | options(module, device)
            aoti_compile_and_package(exported, package_path=content, inductor_configs=settings)
    except Exception as error:  # torch raises errors of many kinds here
        raise LoweringError(
            f"the fx module cannot be compiled ahead of time: {type(error).__name__}",
            facts=str(error).strip().splitlines()[:8],
            hint="save it from backend='fx' or 'torchscript', and report it with the circuit's text",
        ) from error
    path.write_bytes(content.getbuffer())  # torch's own writer ends the process when a disk is full


class AotExecutable:
    """A package that was loaded."""

    is_capturable = False  # its runtime asks the device how far it is, which a capture forbids

    def __init__(self, path: Path, device: torch.device, numerics: Numerics = Numerics()) -> None:  # noqa: B008
        os.environ.setdefault("AOTI_RUNTIME_CHECK_INPUTS", "1")
        self._run = _loaded(path)
        self._device, self._numerics = device, numerics

    @property
    def source(self) -> str:
        return "# compiled ahead of time: there is no source but the circuit's\n"

    def __call__(self, *values: torch.Tensor) -> Any:
        rows = values[0].shape[0] if values else LEAST_ROWS
        with self._numerics.applied(self._device), torch.inference_mode():
            out = self._run(*filled_up([value.detach().contiguous() for value in values], LEAST_ROWS))
        return out if rows >= LEAST_ROWS else first_rows(out, rows)

    def to(self, device: torch.device) -> AotExecutable:
        """The same, if it is there already.

        Raises:
            UnsupportedError: for another device.
        """
        if device == self._device:
            return self
        raise UnsupportedError(
            f"a package compiled ahead of time for {self._device} cannot move to {device}",
            hint="compile the circuit for that device",
        )


def _loaded(path: Path) -> Any:
    from torch._inductor import aoti_load_package

    try:
        return aoti_load_package(str(path))
    except (RuntimeError, ValueError, OSError) as error:
        raise ArtefactError(
            f"{path} is no package that runs here: {str(error).strip().splitlines()[0]}",
            hint="packages are specific to the processor and the version of torch: compile the circuit again",
        ) from error
