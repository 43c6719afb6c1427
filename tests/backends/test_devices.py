"""Devices by name, and what is said of those that are not here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from harness import symbol
from random_models import gpt2
from splits import by_head_and_position, difference

from tapeout.backends.common.devices import as_device
from tapeout.compiler import compile
from tapeout.ir import Add
from tapeout.ir.errors import UnsupportedError
from tapeout.tasks.ioi import IOIDataset
from tapeout.tasks.patching import Sweep, heads


def compiled(device: str) -> Any:
    x = symbol(1, (3,), "x")
    return compile(Add(x, x), inputs=["x"], device=device)


def sweep(device: str) -> Any:
    metric = difference(by_head_and_position(gpt2(), 5))
    data = {"tokens": torch.zeros(2, 5, dtype=torch.int64), "labels": torch.zeros(2, 2, dtype=torch.int64)}
    return Sweep(metric, heads(metric), data, device=device)


WAYS: dict[str, Callable[[str], Any]] = {
    "compile": compiled,
    "to": lambda device: compiled("cpu").to(device),
    "sweep": sweep,
    "dataset": lambda device: IOIDataset(N=2, tokenizer=tiny.word_tokenizer(), device=device),
}


def test_devices_by_name() -> None:
    assert as_device("cpu") == as_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("way", WAYS)
def test_a_name_that_is_none(way: str) -> None:
    with pytest.raises(UnsupportedError, match="device is 'gpu', which is none") as caught:
        WAYS[way]("gpu")
    assert 'use "cpu" or "cuda"' in caught.value.hint


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("way", WAYS)
def test_a_gpu_that_is_not_here(way: str) -> None:
    with pytest.raises(UnsupportedError, match=r"cuda:1 is not here: torch .* sees no GPUs") as caught:
        WAYS[way]("cuda:1")
    assert "a build of torch for CUDA" in caught.value.hint


def test_a_gpu_beyond_those_that_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert as_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(UnsupportedError, match=r"cuda:1 is not here: torch .* sees 1 GPU\n"):
        as_device("cuda:1")
