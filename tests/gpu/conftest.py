"""Says at the end of a run what was not tested for lack of a GPU."""

from __future__ import annotations

import pytest
import torch


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not torch.cuda.is_available():
        terminalreporter.write_line(
            "NO GPU: tests/gpu was skipped, the CUDA code was not tested", yellow=True, bold=True
        )
