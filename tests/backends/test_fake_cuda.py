"""Whatever is called on the CPU here is called on a fake GPU too: nothing it reads may lie elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from batches import Batch, as_tuple
from fake_cuda import on_fake_gpu_too, run_on_fake_gpu
from random_models import gpt2, llama
from splits import by_head_and_position, difference
from torch.nn import functional as F

from tapeout.backends.common.program import Program
from tapeout.backends.fx.functions import FUNCTION_RULES
from tapeout.backends.fx.lower import lower
from tapeout.compiler import compile, compile_many
from tapeout.ir import Circuit
from tapeout.tasks.ioi.circuit import bind_dataset
from tapeout.tasks.patching import PATCH_TOKENS, edges, heads, heads_by_position, mask_name, masked, sets, sweep
from tapeout.testing.cases import CASES

TOKENS = torch.arange(15).reshape(3, 5) % 11
ROWS = {"tokens": TOKENS, "labels": TOKENS[:, :2]}
MODELS: list[Callable[[], Any]] = [gpt2, llama]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[Program]:
    return on_fake_gpu_too(monkeypatch)


def metric(model: Callable[[], Any]) -> Circuit:
    return difference(by_head_and_position(model(), 5))


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_the_catalogue(called: list[Program], dtype: str) -> None:
    kind = getattr(torch, dtype)
    batch = Batch.of([build(torch.float64) for build in CASES.values()])
    as_tuple(compile_many(batch.circuits, inputs=batch.names, dtype=dtype)(**batch.values(kind)))
    assert len(called) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("model", MODELS)
def test_split_models(called: list[Program], model: Callable[[], Any], level: int, dtype: str) -> None:
    compile(metric(model), inputs=list(ROWS), level=level, dtype=dtype)(**ROWS)
    compile(bind_dataset(metric(model), ROWS["tokens"], ROWS["labels"]), level=level, dtype=dtype)()
    assert len(called) == 2


@pytest.mark.parametrize("model", MODELS)
def test_sweeps(called: list[Program], model: Callable[[], Any]) -> None:
    circuit, patch = metric(model), {"tokens": TOKENS.flip(0)}
    for variants in (
        heads(circuit),
        heads_by_position(circuit, "k", positions=(1, -1)),
        edges(circuit),
        sets({"two": ["m0", "a1.h1"]}),
    ):
        assert sweep(circuit, variants, ROWS, patch).complete
    assert len(called) > 10


@pytest.mark.parametrize("model", MODELS)
def test_masks(called: list[Program], model: Callable[[], Any]) -> None:
    circuit, inputs = masked(metric(model), "heads"), [*ROWS, PATCH_TOKENS, mask_name("heads")]
    compiled = compile(circuit, inputs=inputs)
    (shape,) = (each.symbol.shape for each in compiled.inputs if each.name == mask_name("heads"))
    compiled(**ROWS, **{PATCH_TOKENS: TOKENS, mask_name("heads"): torch.ones(3, *shape)})
    assert len(called) == 1


def test_a_value_on_the_cpu_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this file tests would fail: a rule that makes a tensor without saying where."""

    def planted(low: Any, node: Any, args: Any) -> Any:
        return low.call(torch.add, low.call(F.gelu, args[0]), low.call(torch.zeros, (1,)))

    compiled = compile(metric(gpt2), inputs=list(ROWS))
    program = Program(compiled.roots, [each.batched for each in compiled.inputs], compiled.origins)
    run_on_fake_gpu(program, list(ROWS.values()))
    for name in ("gelu", "gelu_new"):
        monkeypatch.setitem(FUNCTION_RULES, name, planted)
    lower(program)
    with pytest.raises(RuntimeError, match="cpu"):
        run_on_fake_gpu(program, list(ROWS.values()))
