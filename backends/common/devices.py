"""The device that something runs on: whether it is here, its memory, and what becomes of its failures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tapeout.ir.errors import DeviceError, UnsupportedError


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


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had on a GPU, those that torch keeps for itself included; None elsewhere."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


@contextmanager
def failures_told(device: torch.device) -> Iterator[None]:
    """Inside, a GPU that fails is told as such. What was begun on it earlier can fail here, and the other way round.

    Raises:
        DeviceError: for a GPU that can no longer be used.
    """
    try:
        yield
    except torch.AcceleratorError as error:
        raise DeviceError(
            f"{device} failed: {str(error).strip().splitlines()[0]}",
            hint="this process has lost it: start Python anew; CUDA_LAUNCH_BLOCKING=1 in its environment shows where",
        ) from error


def out_of_memory(device: torch.device, needed: int, hint: str) -> DeviceError:
    """The error of a call that does not fit, even in parts."""
    free = free_memory(device)
    there = "" if free is None else f", and {free:,} are free"
    return DeviceError(f"{device} is out of memory: about {needed:,} bytes are needed{there}", hint=hint)


def _gpus() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0
