"""What a compiled circuit does with a device: chunks of a dataset, memory that runs out, a device that is lost."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from random_models import gpt2
from splits import by_head_and_position, difference
from tolerances import assert_close

from tapeout.backends.common import devices, numerics
from tapeout.backends.common.devices import as_device
from tapeout.backends.common.numerics import Numerics
from tapeout.compiler import Compiled, compile
from tapeout.ir import Scalar
from tapeout.ir.errors import DataError, DeviceError, UnsupportedError
from tapeout.tasks.patching import Sweep, heads, sweep

GPU = torch.device("cuda", 0)


def data(rows: int) -> dict[str, torch.Tensor]:
    return {
        "tokens": torch.arange(5 * rows).reshape(rows, 5) % 11,
        "labels": torch.arange(2 * rows).reshape(rows, 2) % 11,
    }


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    return compile(difference(by_head_and_position(gpt2(), 5)), inputs=["tokens", "labels"])


class Small:
    """An executable on a device that takes only so many rows at once."""

    source, is_capturable = "", False

    def __init__(self, run: Any, most: int) -> None:
        self.run, self.most = run, most
        self.rows: list[int] = []

    def __call__(self, *values: torch.Tensor) -> Any:
        self.rows.append(len(values[0]))
        if len(values[0]) > self.most:
            raise torch.OutOfMemoryError("planted")
        return self.run(*values)

    def to(self, device: torch.device) -> Small:
        return self


# -- datasets in chunks


@pytest.mark.parametrize(("chunk", "rows"), [(None, [10]), (4, [4, 4, 2]), (10, [10]), (99, [10])])
def test_a_dataset_goes_through_in_chunks(compiled: Compiled, chunk: int | None, rows: list[int]) -> None:
    counted, told = Small(compiled.executable, 99), list[tuple[str, int, int]]()
    found = replace(compiled, executable=counted).map(chunk, lambda *what: told.append(what), **data(10))
    assert isinstance(found, torch.Tensor)
    assert_close(found, compiled(**data(10)), torch.float32)
    assert counted.rows == rows
    assert told == [("rows", sum(rows[: end + 1]), 10) for end in range(len(rows))]


def test_several_circuits_give_a_tuple_and_the_expected_batch_is_the_chunk() -> None:
    from tapeout.compiler import compile_many

    circuit = difference(by_head_and_position(gpt2(), 5))
    both = compile_many([circuit, circuit.mul_scalar(2.0)], inputs=["tokens", "labels"], batch=[2, 4])
    counted = Small(both.executable, 4)
    one, other = replace(both, executable=counted).map(**data(9))
    assert counted.rows == [4, 4, 1]
    assert torch.equal(other, 2 * one)


def test_as_many_rows_as_fit_the_free_memory(compiled: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tapeout.compiler.mapping.free_memory", lambda device: 2 * compiled.cost(3).peak_bytes)
    counted = Small(compiled.executable, 99)
    replace(compiled, executable=counted).map(**data(40))
    assert len(counted.rows) > 1
    assert compiled.cost(counted.rows[0]).peak_activation_bytes <= 1.6 * compiled.cost(3).peak_bytes


@pytest.mark.parametrize("chunk", [0, -3])
def test_chunks_that_are_none(compiled: Compiled, chunk: int) -> None:
    with pytest.raises(UnsupportedError, match="as many as fit"):
        compiled.map(chunk, **data(3))


def test_a_dataset_is_checked_as_a_whole_before_anything_runs(compiled: Compiled) -> None:
    wrong = data(10)
    wrong["tokens"][9, 0] = 11
    counted = Small(compiled.executable, 99)
    with pytest.raises(DataError, match="holds 11"):
        replace(compiled, executable=counted).map(2, **wrong)
    assert counted.rows == []
    with pytest.raises(UnsupportedError, match="call it"):
        compile(Scalar(1.0)).map()


# -- out of memory


def test_a_call_that_does_not_fit_is_made_in_halves(compiled: Compiled) -> None:
    small = Small(compiled.executable, 5)
    assert_close(replace(compiled, executable=small)(**data(9)), compiled(**data(9)), torch.float32)
    assert small.rows == [9, 5, 4]


@pytest.mark.parametrize("rows", [1, 9])
def test_what_does_not_fit_in_halves_is_told(compiled: Compiled, rows: int) -> None:
    with pytest.raises(DeviceError, match=r"out of memory: about [\d,]+ bytes are needed\n(.*\n)*.*max_memory"):
        replace(compiled, executable=Small(compiled.executable, 0))(**data(rows))


def test_a_sweep_begins_anew_with_half_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = difference(by_head_and_position(gpt2(), 5))
    baseline, patch = data(3), {"tokens": data(3)["tokens"].flip(0)}
    expected = sweep(metric, heads(metric), baseline, patch).to_numpy()
    planned = Sweep(metric, heads(metric), baseline, patch, max_memory=1 << 30)
    run, limits = planned._run_here, list[int | None]()

    def fails(keep: Any, times: int) -> None:
        limits.append(planned.limit)
        if len(limits) <= times:
            raise torch.OutOfMemoryError("planted")
        run(keep)

    monkeypatch.setattr(planned, "_run_here", lambda keep: fails(keep, 1))
    assert (abs(planned.run().to_numpy() - expected) < 1e-5).all()
    assert limits == [1 << 30, 1 << 29]
    limits.clear()
    monkeypatch.setattr(planned, "_run_here", lambda keep: fails(keep, 9))
    with pytest.raises(DeviceError, match="give max_memory"):
        planned.run()


# -- devices


def test_a_lost_device_is_told(compiled: Compiled) -> None:
    class Lost(Small):
        def __call__(self, *values: torch.Tensor) -> Any:
            raise torch.AcceleratorError("CUDA error: unspecified launch failure\nmore")  # type: ignore[call-arg]

    with pytest.raises(DeviceError, match=r"unspecified launch failure\n.*start Python anew") as raised:
        replace(compiled, executable=Lost(None, 1))(**data(2))
    assert "more" not in str(raised.value)


def test_cuda_is_the_current_device_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_gpus", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert as_device("cuda") == torch.device("cuda", 1)
    assert as_device("cuda:0") == GPU
    with pytest.raises(UnsupportedError, match="sees 2 GPUs"):
        as_device("cuda:2")


def test_what_a_worker_of_a_cluster_gets_lies_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = difference(by_head_and_position(gpt2(), 5))
    planned = Sweep(metric, heads(metric), data(3), {"tokens": data(3)["tokens"].flip(0)}, tf32=True)
    monkeypatch.setattr(planned, "device", torch.device("cuda", 3))
    arguments = planned.arguments()
    assert planned.numerics == Numerics(tf32=True)
    assert (arguments["tf32"], arguments["deterministic"]) == (True, False)
    assert arguments["device"] == "cuda"  # the one that the worker sees
    assert all(value.device.type == "cpu" for name in ("baseline", "patch") for value in arguments[name].values())
    assert pickle.loads(pickle.dumps(arguments["baseline"]))["tokens"].shape == (3, 5)


# -- how products are computed


def states() -> tuple[object, ...]:
    matmul = torch.backends.cuda.matmul
    return (
        torch.get_float32_matmul_precision(),
        matmul.allow_bf16_reduced_precision_reduction,
        torch.are_deterministic_algorithms_enabled(),
    )


@pytest.mark.parametrize("outside", ["highest", "high"])
@pytest.mark.parametrize("wanted", [Numerics(), Numerics(tf32=True), Numerics(deterministic=True)])
def test_numerics_hold_inside_and_are_put_back(outside: str, wanted: Numerics) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(outside)
    try:
        kept = states()
        with pytest.raises(ZeroDivisionError), wanted.applied(GPU):
            assert states() == ("high" if wanted.tf32 else "highest", False, wanted.deterministic)
            raise ZeroDivisionError
        assert states() == kept
        with wanted.applied(torch.device("cpu")):
            assert states() == kept
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("value", "is_enough"), [(None, False), (":0:0", False), (":4096:8", True), (":16:8", True)])
def test_deterministic_products_need_a_workspace(
    value: str | None, is_enough: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(numerics._WORKSPACE, raising=False)
    if value is not None:
        monkeypatch.setenv(numerics._WORKSPACE, value)
    Numerics(deterministic=True).check(torch.device("cpu"))
    if is_enough:
        Numerics(deterministic=True).check(GPU)
        return
    with pytest.raises(UnsupportedError, match="start Python with CUBLAS_WORKSPACE_CONFIG=:4096:8"):
        Numerics(deterministic=True).check(GPU)


def test_numerics_are_saved_with_an_artefact(tmp_path: Any) -> None:
    from tapeout.compiler import load

    circuit = difference(by_head_and_position(gpt2(), 5))
    for backend in ("fx", "torchscript", "onnx"):
        saved = compile(circuit, backend, ["tokens", "labels"], tf32=True, deterministic=True)
        saved.save(tmp_path / backend)
        found = load(tmp_path / backend)
        assert found.program.numerics == Numerics(True, True)
        assert found.executable.numerics == Numerics(True, True)  # type: ignore[attr-defined]
        assert_close(found(**data(3)), saved(**data(3)), torch.float32)


# -- launches

VIEWS = {torch.unflatten, torch.permute, torch.flatten, torch.select, torch.narrow, torch.unsqueeze, torch.reshape}
"""What starts nothing on a GPU, on the strides that it has here."""


def launches(module: Any) -> int:
    return sum(node.op in ("call_function", "call_method") and node.target not in VIEWS for node in module.graph.nodes)


def test_a_layer_of_gpt2_launches_at_most_twelve_kernels() -> None:
    counts: Sequence[int] = [
        launches(
            compile(
                difference(by_head_and_position(gpt2(n_layer=layers), 5)), inputs=["tokens", "labels"]
            ).executable.module
        )  # type: ignore[attr-defined]
        for layers in (2, 3, 5)
    ]
    assert counts[1] - counts[0] == 12
    assert counts[2] - counts[1] == 24
