"""The device that something runs on."""

from __future__ import annotations

import torch

from tapeout.ir.errors import UnsupportedError


def as_device(device: str | torch.device) -> torch.device:
    """The device of that name.

    Raises:
        UnsupportedError: if there is no such device, or this machine has it not.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UnsupportedError(f"device is {device!r}, which is none", hint='use "cpu" or "cuda"') from error
    if found.type == "cuda" and (found.index or 0) >= (count := _gpus()):
        raise UnsupportedError(
            f"{found} is not here: torch {torch.__version__} sees {count or 'no'} GPU{'s' * (count != 1)}",
            hint="use device 'cpu', or one from 'cuda:0' on; a GPU needs its driver and a build of torch for CUDA",
        )
    return torch.device("cuda", torch.cuda.current_device()) if found == torch.device("cuda") else found


def _gpus() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0
