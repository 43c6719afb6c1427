"""What a call really holds at once, against the estimate and against `max_memory`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from harness import integers
from live_memory import peak_of
from random_models import gpt2, llama
from splits import by_head_and_position, difference

from tapeout.compiler import Compiled, compile

LENGTH, ROWS = 16, 50
SIZES: dict[str, Any] = {
    "gpt2": lambda: gpt2(n_head=4, n_embd=64, n_inner=256),
    "llama": lambda: llama(hidden_size=64, intermediate_size=160),
}
VALUES = {"tokens": integers(ROWS, LENGTH, below=11), "labels": integers(ROWS, 2, below=11)}


def compiled(family: str, backend: str, dtype: str) -> Compiled:
    return compile(difference(by_head_and_position(SIZES[family](), LENGTH)), backend, list(VALUES), dtype)


def measured(what: Compiled, rows: int = ROWS) -> int:
    values = {name: value[:rows] for name, value in VALUES.items()}
    return peak_of(lambda: what(**values))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("backend", ["fx", "torchscript"])
@pytest.mark.parametrize("family", SIZES)
def test_activations_take_what_is_estimated(family: str, backend: str, dtype: str) -> None:
    whole = compiled(family, backend, dtype)
    for rows in (ROWS, 5):
        estimate = whole.cost(rows).peak_activation_bytes
        assert 0.9 * estimate < measured(whole, rows) < 1.5 * estimate


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("family", SIZES)
def test_max_memory_holds(family: str, dtype: str) -> None:
    """To one part in a hundred, beside the results, of which those of earlier parts wait for the last."""
    whole = compiled(family, "fx", dtype)
    cost = whole.cost(10)
    parts = replace(whole, max_memory=cost.peak_bytes)
    results = ROWS * whole.dtype.itemsize
    assert measured(parts) <= 1.01 * cost.peak_activation_bytes + results < measured(whole) / 2
