"""Programs lowered for a GPU and run there without one: fake tensors have a device and a shape, and no values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tapeout.backends.common.program import Program
from tapeout.backends.fx import executable as fx_executable
from tapeout.backends.fx.lower import lower

GPU = torch.device("cuda", 0)


def run_on_fake_gpu(program: Program, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Fake results of the program for values of these shapes.

    Raises:
        RuntimeError: of torch, where an operation meets tensors of two devices.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):  # the circuit's arrays are real, and are moved
        module, _ = lower(replace(program, device=GPU))
        elsewhere = [name for name, held in module.state_dict().items() if held.device != GPU]
        if elsewhere:
            raise RuntimeError(f"not on {GPU}: {', '.join(elsewhere)}")
        out = module(*(torch.empty(each.shape, dtype=each.dtype, device=GPU) for each in values))
    return list(out) if isinstance(out, tuple) else [out]


def check_on_fake_gpu(program: Program, values: Sequence[torch.Tensor], results: Any) -> None:
    """Asserts that the program gives there what it gave here, but for the device and the values."""
    found = run_on_fake_gpu(program, values)
    expected = list(results) if isinstance(results, tuple) else [results]
    for fake, real in zip(found, expected, strict=True):
        assert (fake.device, fake.shape, fake.dtype) == (GPU, real.shape, real.dtype)


def on_fake_gpu_too(monkeypatch: pytest.MonkeyPatch) -> list[Program]:
    """From now on every call of the fx backend is made on a fake GPU as well; the programs that were called."""
    called: list[Program] = []
    build = fx_executable.build

    class Watched(fx_executable.FxExecutable):
        program: Program

        def __call__(self, *values: torch.Tensor) -> Any:
            out = super().__call__(*values)
            check_on_fake_gpu(self.program, values, out)
            called.append(self.program)
            return out

    def watched(program: Program) -> tuple[fx_executable.FxExecutable, int]:
        made, packed = build(program)
        executable = Watched(made.module, made.device, made.numerics)
        executable.program = program
        return executable, packed

    monkeypatch.setattr(fx_executable, "build", watched)
    return called
