"""CUDA graphs against a stand-in of the capture interface: what is captured, replayed, filled up, kept and freed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from cuda_stand_in import StandIn, Stream
from random_models import gpt2, llama
from splits import by_head_and_position, difference
from tolerances import assert_close

from tapeout.backends.common import cuda_graphs
from tapeout.backends.common.cuda_graphs import CudaGraphs
from tapeout.compiler import compile
from tapeout.ir.errors import UnsupportedError
from tapeout.tasks.ioi.circuit import bind_dataset

CPU = torch.device("cpu")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """The stand-in, which takes the CPU for its device."""
    stand_in = StandIn()
    monkeypatch.setattr(cuda_graphs, "cuda", stand_in)
    monkeypatch.setattr(cuda_graphs, "CAPTURES", "cpu")
    cuda_graphs._side_stream.cache_clear()
    return stand_in


class Counted:
    """Doubles and sums; counts its calls."""

    source = "2 * x"

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls.append(len(x))
        return 2 * x, (x + y).sum(-1)

    def to(self, device: torch.device) -> Counted:
        return Counted()


def given(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 3, generator=generator), torch.randn(rows, 3, generator=generator)


def check(graphs: CudaGraphs, rows: int, seed: int = 0) -> None:
    x, y = given(rows, seed)
    doubled, summed = graphs(x, y)
    assert torch.equal(doubled, 2 * x)
    assert_close(summed, (x + y).sum(-1), torch.float32)


def test_all_buckets_are_captured_at_the_first_call_the_largest_first(cuda: StandIn) -> None:
    run = Counted()
    graphs = CudaGraphs(run, [2, 8, 4, 2], CPU)
    assert graphs.buckets == (2, 4, 8)
    check(graphs, 3)
    assert list(graphs.captured) == [8, 4, 2]
    assert run.calls == [8] * 4 + [4] * 4 + [2] * 4  # three warm-ups and the capture
    assert {graph.pool for graph in cuda.graphs} == {1}


def test_batches_are_filled_up_replayed_and_computed_in_parts(cuda: StandIn) -> None:
    run = Counted()
    graphs = CudaGraphs(run, [2, 4], CPU)
    check(graphs, 1)
    calls = len(run.calls)
    replayed = {bucket: held.graph.replays for bucket, held in graphs.captured.items()}
    assert replayed == {4: 0, 2: 1}
    for rows, of_two, of_four in ((1, 1, 0), (2, 1, 0), (3, 0, 1), (4, 0, 1), (5, 1, 1), (11, 0, 3)):
        before = {bucket: held.graph.replays for bucket, held in graphs.captured.items()}
        check(graphs, rows, seed=rows)
        after = {bucket: held.graph.replays for bucket, held in graphs.captured.items()}
        assert (after[2] - before[2], after[4] - before[4]) == (of_two, of_four)
    assert len(run.calls) == calls  # nothing ran but replays


def test_results_stay_when_the_next_replay_comes(cuda: StandIn) -> None:
    graphs = CudaGraphs(Counted(), [4], CPU)
    kept = graphs(*given(3))
    copies = [each.clone() for each in kept]
    held = graphs.captured[4].results
    graphs(*given(4, seed=1))
    assert all(torch.equal(one, other) for one, other in zip(kept, copies, strict=True))
    assert not torch.equal(held[0][:3], kept[0])  # the graph's own were overwritten
    assert not any(each.is_inference() for each in kept)


def test_a_call_without_inputs_is_captured_when_it_is_made_a_second_time(cuda: StandIn) -> None:
    calls: list[int] = []

    def run() -> torch.Tensor:
        calls.append(1)
        return torch.arange(6.0).reshape(2, 3) * 2

    graphs = CudaGraphs(run, [1], CPU)
    values = [graphs() for _ in range(4)]
    assert all(torch.equal(value, values[0]) for value in values)
    assert values[0].shape == (2, 3)
    assert len(calls) == 1 + 3 + 1
    assert graphs.captured[1].graph.replays == 3  # type: ignore[attr-defined]


def test_a_call_waits_for_the_one_before_on_another_stream(cuda: StandIn) -> None:
    graphs = CudaGraphs(Counted(), [2], CPU)
    first, second = Stream(), Stream()
    with cuda.stream(first):
        check(graphs, 2)
    with cuda.stream(second):
        check(graphs, 2, seed=1)
    assert [event.stream for event in second.waited] == [first]


def test_threads_get_their_own_answers(cuda: StandIn) -> None:
    graphs = CudaGraphs(Counted(), [2, 4], CPU)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: check(graphs, 1 + seed % 5, seed), range(64)))


def test_a_capture_that_fails_leaves_nothing_and_says_what_to_do(cuda: StandIn) -> None:
    graphs = CudaGraphs(Counted(), [2], CPU)
    cuda.fails_in_capture = True
    with pytest.raises(UnsupportedError, match=r"not permitted when stream is capturing\n.*without `batch`") as raised:
        graphs(*given(2))
    assert "more" not in str(raised.value)
    assert not graphs.captured
    cuda.fails_in_capture = False
    check(graphs, 2)


def test_graphs_are_freed_with_the_object(cuda: StandIn) -> None:
    graphs = CudaGraphs(Counted(), [2], CPU)
    check(graphs, 2)
    held = weakref.ref(graphs.captured[2].graph)
    cuda.graphs.clear()
    del graphs
    gc.collect()
    assert held() is None


def test_they_move_and_are_captured_anew(cuda: StandIn) -> None:
    graphs = CudaGraphs(Counted(), [2], CPU)
    check(graphs, 2)
    moved = graphs.to(CPU)
    assert not moved.captured
    check(moved, 2)
    assert moved.source == "2 * x"


@pytest.mark.parametrize("buckets", [[], [0], [-1, 2]])
def test_buckets_that_are_no_batch_sizes(cuda: StandIn, buckets: list[int]) -> None:
    with pytest.raises(UnsupportedError, match="give positive numbers"):
        CudaGraphs(Counted(), buckets, CPU)


def test_values_elsewhere_are_refused(cuda: StandIn) -> None:
    with pytest.raises(UnsupportedError, match="move them"):
        CudaGraphs(Counted(), [2], CPU)(*(value.to("meta") for value in given(2)))


@pytest.mark.parametrize("model", [gpt2, llama])
def test_a_models_replays_are_its_calls(cuda: StandIn, model: Callable[[], Any]) -> None:
    circuit = difference(by_head_and_position(model(), 5))
    compiled = compile(circuit, inputs=["tokens", "labels"])
    graphs = CudaGraphs(compiled.executable, [2, 4], CPU)
    for rows in (3, 1, 6):
        values = torch.randint(11, (rows, 5)), torch.randint(11, (rows, 2))
        assert_close(graphs(*values), compiled.executable(*values), torch.float32)
    bound = compile(bind_dataset(circuit, torch.randint(11, (6, 5)), torch.randint(11, (6, 2))))
    without = CudaGraphs(bound.executable, [1], CPU)
    for _ in range(3):
        assert_close(without(), bound(), torch.float32)
