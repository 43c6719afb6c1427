"""What only a GPU can tell: `pytest tests/gpu`. Without one every test here is skipped, and says so."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tiny
import torch
from batches import Batch, as_tuple
from random_models import gpt2, llama
from splits import by_head_and_position, difference
from tolerances import assert_close

from tapeout.backends.common.cuda_graphs import CudaGraphs
from tapeout.compiler import Compiled, compile, compile_many, load
from tapeout.ir import Array, Einsum, Symbol, tanh
from tapeout.ir.errors import DeviceError, TypeMismatchError, UnsupportedError
from tapeout.tasks.ioi.circuit import bind_dataset
from tapeout.tasks.ioi.experiment import run_ioi
from tapeout.tasks.patching import PATCH_TOKENS, Sweep, edges, heads, heads_by_position, mask_name, masked, sets, sweep
from tapeout.tasks.patching.experiment import run_patch
from tapeout.testing.cases import CASES

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="NO GPU: nothing of the CUDA code is tested; run `pytest tests/gpu` on one"
)

HAS_ORT = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
needs_ort = pytest.mark.skipif(not HAS_ORT, reason="this onnxruntime was built without CUDA: install onnxruntime-gpu")
ONNX = pytest.param("onnx", marks=needs_ort)

F32, F64 = torch.float32, torch.float64
INPUTS = ["tokens", "labels"]
MODELS: dict[str, Any] = {"gpt2": gpt2, "llama": llama}
SIZES = (1, 7, 64, 100, 1)


@cache
def model(family: str, backend: str, device: str) -> Compiled:
    return compile(difference(by_head_and_position(MODELS[family](), 5)), backend, INPUTS, device=device)


def tokens(rows: int) -> dict[str, torch.Tensor]:
    return {"tokens": torch.randint(11, (rows, 5)), "labels": torch.randint(11, (rows, 2))}


def on_gpu(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.cuda() for name, value in values.items()}


def check(compiled: Compiled, family: str = "gpt2") -> None:
    for rows in SIZES:
        values = tokens(rows)
        assert_close(compiled(**on_gpu(values)).cpu(), model(family, "fx", "cpu")(**values), F32)


@pytest.fixture(autouse=True)
def full_precision() -> Any:
    """Products of float32 in float32, not in TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("backend", ["fx", "torchscript", "inductor"])
def test_the_catalogue(backend: str) -> None:
    batch = Batch.of([build(F64) for build in CASES.values()])
    compiled = compile_many(batch.circuits, backend, batch.names, dtype=F64, device="cuda:0")
    found = as_tuple(compiled(**on_gpu(batch.values(F64))))
    for value, expected in zip(found, batch.expected, strict=True):
        assert_close(value.cpu(), expected, F64)


@pytest.mark.parametrize("backend", ["fx", "torchscript", "inductor", ONNX])
@pytest.mark.parametrize("family", MODELS)
def test_a_split_model(family: str, backend: str) -> None:
    check(model(family, backend, "cuda:0"), family)


def test_a_compiled_circuit_moves() -> None:
    moved = model("gpt2", "fx", "cpu").to("cuda:0")
    check(moved)
    with pytest.raises(TypeMismatchError, match="move it"):
        moved(**tokens(2))
    values = tokens(2)
    assert_close(moved.to("cpu")(**values), model("gpt2", "fx", "cpu")(**values), F32)


@pytest.mark.parametrize("backend", ["fx", "inductor"])
def test_cuda_graphs(backend: str) -> None:
    compiled = model("gpt2", backend, "cuda:0")
    graphs = CudaGraphs(compiled.executable, (2, 8, 32), torch.device("cuda:0"))
    check(replace(compiled, executable=graphs))
    assert set(graphs.captured) == {2, 8, 32}
    before = dict(graphs.captured)
    check(replace(compiled, executable=graphs))
    assert graphs.captured == before  # replayed, not captured anew


@pytest.mark.parametrize("backend", ["fx", "inductor"])
def test_expected_batches_are_captured(backend: str, tmp_path: Path) -> None:
    circuit = difference(by_head_and_position(gpt2(), 5))
    compiled = compile(circuit, backend, INPUTS, device="cuda:0", batch=[8, 32])
    check(compiled)
    assert compiled.graphs is not None and set(compiled.graphs.captured) == {8, 32}
    small = replace(compiled, max_memory=compiled.cost(8).peak_bytes)
    assert small.graphs is not None and small.graphs.buckets == (8,)
    check(small)
    compiled.save(tmp_path / backend)
    check(load(tmp_path / backend))


def test_a_circuit_that_moves_to_the_gpu_is_captured_there() -> None:
    circuit = difference(by_head_and_position(gpt2(), 5))
    here = compile(circuit, "fx", INPUTS, batch=4)
    there = here.to("cuda:0")
    check(there)
    assert here.graphs is None and there.graphs is not None and set(there.graphs.captured) == {4}
    assert there.to("cpu").graphs is None


def test_a_replay_leaves_earlier_results_alone() -> None:
    compiled = model("gpt2", "fx", "cuda:0")
    graphs = replace(compiled, executable=CudaGraphs(compiled.executable, (4,), torch.device("cuda:0")))
    first, second = on_gpu(tokens(3)), on_gpu(tokens(3))
    kept = graphs(**first)
    copy = kept.clone()
    graphs(**second)
    assert torch.equal(kept, copy)
    assert not kept.is_inference()


@pytest.mark.parametrize("backend", ["fx", "inductor"])
def test_a_call_without_inputs_is_captured_when_it_is_repeated(backend: str) -> None:
    values = tokens(6)
    circuit = bind_dataset(difference(by_head_and_position(gpt2(), 5)), values["tokens"], values["labels"])
    compiled = compile(circuit, backend, device="cuda:0")
    found = [compiled() for _ in range(3)]
    assert compiled.graphs is not None and set(compiled.graphs.captured) == {1}
    for value in found:
        assert_close(value.cpu(), model("gpt2", "fx", "cpu")(**values), F32)


def test_graphs_share_memory_and_are_freed_with_the_object() -> None:
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()

    def reserved(sizes: list[int]) -> int:
        compiled = compile(difference(by_head_and_position(gpt2(), 5)), inputs=INPUTS, device="cuda:0", batch=sizes)
        for rows in sizes:
            compiled(**on_gpu(tokens(rows)))
        assert compiled.graphs is not None and set(compiled.graphs.captured) == set(sizes)
        torch.cuda.synchronize()
        taken = torch.cuda.memory_reserved() - before
        del compiled
        gc.collect()
        torch.cuda.empty_cache()
        return taken

    one, all_sizes = reserved([4096]), reserved([1024, 2048, 4096])
    assert all_sizes < 1.9 * one
    assert torch.cuda.memory_reserved() - before < one


@pytest.mark.parametrize("batch", [None, 64])
def test_a_dataset_on_the_cpu_goes_through_in_chunks(batch: int | None) -> None:
    compiled = compile(difference(by_head_and_position(gpt2(), 5)), inputs=INPUTS, device="cuda:0", batch=batch)
    values = tokens(1000)
    expected = model("gpt2", "fx", "cpu")(**values)
    for chunk in (None, 64, 7):
        found = compiled.map(chunk=chunk, **values)
        assert found.device.type == "cpu"
        assert_close(found, expected, F32)


def test_a_call_that_does_not_fit_is_halved_and_then_told() -> None:
    x = Symbol.new_with_random_uuid((1 << 18,), "x")
    four = Array(torch.ones(4), "four")
    compiled = compile(tanh(Einsum.from_einsum_string("i,j->ij", x, four)).sum(), inputs=["x"], device="cuda:0")
    values = {"x": torch.ones(512, 1 << 18, device="cuda")}
    expected, needed = compiled(**values), compiled.cost(512).peak_activation_bytes
    total = torch.cuda.get_device_properties(0).total_memory
    try:
        for part in (0.7, 0.1):
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + part * needed) / total)
            if part > 0.5:
                assert_close(compiled(**values).cpu(), expected.cpu(), F32)
            else:
                with pytest.raises(DeviceError, match="max_memory"):
                    compiled(**values)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_sweep_that_meets_the_end_of_memory_goes_on_with_less(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = difference(by_head_and_position(gpt2(), 5))
    baseline, patch = tokens(3), {"tokens": tokens(3)["tokens"]}
    planned = Sweep(metric, heads(metric), baseline, patch, device="cuda:0")
    assert planned.limit is not None and planned.limit > 1 << 30
    run, calls = planned._run_here, []

    def fail_once(keep: Any) -> None:
        calls.append(planned.limit)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("planted")
        run(keep)

    monkeypatch.setattr(planned, "_run_here", fail_once)
    assert planned.run().complete
    assert calls == [calls[0], calls[0] // 2]


def test_threads_and_streams_share_a_graph() -> None:
    compiled = compile(difference(by_head_and_position(gpt2(), 5)), inputs=INPUTS, device="cuda:0", batch=8)
    given = [tokens(8) for _ in range(32)]
    expected = [model("gpt2", "fx", "cpu")(**values) for values in given]

    def call(values: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.cuda.stream(torch.cuda.Stream()):
            return compiled(**on_gpu(values)).cpu()

    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(call, given), expected, strict=True):
            assert_close(found, wanted, F32)


@pytest.mark.parametrize("backend", ["fx", "inductor"])
def test_tf32_is_what_was_compiled_and_not_what_torch_is_set_to(backend: str) -> None:
    x, w = torch.randn(64, 512), torch.randn(512, 512)
    circuit = Einsum.from_einsum_string("i,ij->j", Symbol.new_with_random_uuid((512,), "x"), Array(w, "w"))
    exact = x.double() @ w.double()
    errors = {}
    for setting in ("highest", "high"):
        torch.set_float32_matmul_precision(setting)
        for tf32 in (False, True):
            compiled = compile(circuit, backend, ["x"], device="cuda:0", tf32=tf32)
            errors[setting, tf32] = float((compiled(x=x.cuda()).cpu().double() - exact).abs().max())
        assert torch.get_float32_matmul_precision() == setting
        assert errors[setting, False] < 1e-3 < errors[setting, True] < 1e-1, errors


def test_deterministic_asks_for_a_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    circuit = difference(by_head_and_position(gpt2(), 5))
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with pytest.raises(UnsupportedError, match="start Python with CUBLAS_WORKSPACE_CONFIG"):
        compile(circuit, inputs=INPUTS, device="cuda:0", deterministic=True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    compiled, values = compile(circuit, inputs=INPUTS, device="cuda:0", deterministic=True), on_gpu(tokens(64))
    assert all(torch.equal(compiled(**values), compiled(**values)) for _ in range(5))
    assert not torch.are_deterministic_algorithms_enabled()


def test_cuda_graphs_take_values_on_the_gpu_only() -> None:
    with pytest.raises(UnsupportedError, match="on a CUDA device"):
        CudaGraphs(model("gpt2", "fx", "cuda:0").executable, (2,), torch.device("cuda:0"))(*tokens(2).values())


@pytest.mark.parametrize("backend", ["fx", "torchscript", "inductor", ONNX])
def test_sweeps(backend: str) -> None:
    """Data from the CPU, as a dataset has it; every part of a model, sets of them, and edges."""
    metric = difference(by_head_and_position(gpt2(), 5))
    baseline, patch = tokens(3), {"tokens": tokens(3)["tokens"]}
    grids = (
        heads(metric),
        heads_by_position(metric, "k", positions=(1, -1)),
        edges(metric),
        sets({"two": ["m0", "a1.h1"]}),
    )
    for variants in grids:
        found = sweep(metric, variants, baseline, patch, backend=backend, device="cuda:0").to_numpy()
        expected = sweep(metric, variants, baseline, patch, dtype="float64").to_numpy()
        assert np.nanmax(np.abs(found - expected)) < 1e-3


@pytest.mark.parametrize("backend", ["fx", "inductor"])
def test_one_captured_graph_serves_every_mask(backend: str) -> None:
    circuit = masked(difference(by_head_and_position(gpt2(), 5)), "heads")
    inputs = [*INPUTS, PATCH_TOKENS, mask_name("heads")]
    there = compile(circuit, backend, inputs, device="cuda:0", batch=4)
    here = compile(circuit, "fx", inputs)
    (shape,) = (each.symbol.shape for each in here.inputs if each.name == mask_name("heads"))
    for _ in range(3):
        values = {**tokens(4), PATCH_TOKENS: tokens(4)["tokens"], mask_name("heads"): torch.rand(4, *shape).round()}
        assert_close(there(**on_gpu(values)).cpu(), here(**values), F32)
    assert there.graphs is not None and set(there.graphs.captured) == {4}


def test_the_commands_run_there(tmp_path: Path) -> None:
    tokenizer = tiny.word_tokenizer()
    checkpoint = tiny.save(tiny.gpt2(len(tokenizer)), tmp_path, tokenizer)
    assert run_ioi(checkpoint, n=8, device="cuda").within_tolerance
    assert run_patch(checkpoint, "direct", n=4, device="cuda").result.complete


@pytest.mark.parametrize("backend", ["fx", "torchscript", "inductor", ONNX])
def test_artefacts(backend: str, tmp_path: Path) -> None:
    model("gpt2", backend, "cuda:0").save(tmp_path / backend)
    check(load(tmp_path / backend))


@pytest.mark.parametrize("backend", ["fx", ONNX])
def test_a_portable_artefact_moves_when_it_is_loaded(backend: str, tmp_path: Path) -> None:
    model("gpt2", backend, "cpu").save(tmp_path / backend)
    check(load(tmp_path / backend, "cuda:0"))


@needs_ort
def test_onnx_in_bfloat16_runs_on_the_gpu_and_nowhere_else() -> None:
    circuit = difference(by_head_and_position(gpt2(), 5))
    compiled = compile(circuit, "onnx", INPUTS, dtype="bfloat16", device="cuda:0")
    assert compiled.executable._session.get_providers()[0] == "CUDAExecutionProvider"  # type: ignore[attr-defined]
    values = tokens(7)
    assert_close(compiled(**on_gpu(values)).cpu(), model("gpt2", "fx", "cpu")(**values), torch.bfloat16)
    with pytest.raises(UnsupportedError, match="cannot run the model"):
        compiled.to("cpu")
