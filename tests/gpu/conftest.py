"""Says at the end of a run what was not tested for lack of a GPU."""

from __future__ import annotations

import os
import tempfile

import pytest
import torch

if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # two that write one package of Inductor's at once spoil it
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix=f"inductor-{worker}-")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not torch.cuda.is_available():
        terminalreporter.write_line(
            "NO GPU: tests/gpu was skipped, the CUDA code was not tested", yellow=True, bold=True
        )
