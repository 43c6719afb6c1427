"""Sweeps on a cluster of processes: the numbers of one process, whatever becomes of a worker."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from distributed import Client, LocalCluster
from random_models import gpt2
from splits import by_head_and_position, difference

from tapeout.ir import Circuit
from tapeout.ir.errors import UnsupportedError
from tapeout.tasks.patching import Sweep, heads_by_position, sweep

LENGTH = 5


@pytest.fixture(scope="module")
def metric() -> Circuit:
    return difference(by_head_and_position(gpt2(), LENGTH))


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


def data(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "tokens": torch.randint(11, (3, LENGTH), generator=generator),
        "labels": torch.randint(11, (3, 2), generator=generator),
    }


def planned(metric: Circuit, **settings: Any) -> Sweep:
    return Sweep(metric, heads_by_position(metric), data(0), data(1), dtype="float64", **settings)


def test_the_numbers_of_one_process(metric: Circuit, client: Client) -> None:
    alone = planned(metric).run()
    told: list[tuple[int, int]] = []
    grid = heads_by_position(metric)
    together = sweep(
        metric, grid, data(0), data(1), dtype="float64", client=client,
        progress=lambda what, done, total: told.append((done, total)),
    )  # fmt: skip
    assert together.complete
    assert np.allclose(together.to_numpy(), alone.to_numpy(), atol=1e-12)
    assert np.allclose(together.baseline, alone.baseline, atol=1e-12)
    assert told[-1] == (len(grid), len(grid)) and len(told) > 2


def test_a_worker_that_dies_loses_nothing(metric: Circuit, client: Client) -> None:
    alone = planned(metric).run()
    victims = list(client.run(os.getpid).values())[:1]

    def kill(what: str, done: int, total: int) -> None:
        if victims and done:
            os.kill(victims.pop(), signal.SIGKILL)

    together = planned(metric, progress=kill).run(client)
    assert not victims and together.complete
    assert np.allclose(together.to_numpy(), alone.to_numpy(), atol=1e-12)


def test_ctrl_c_gives_what_is_finished(metric: Circuit, client: Client) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if 0 < done < total:
            raise KeyboardInterrupt

    result = planned(metric, progress=interrupt).run(client)
    values = result.to_numpy()
    assert not result.complete and np.isnan(values).any() and not np.isnan(values).all()


def test_an_error_on_a_worker_is_the_same_error_here(metric: Circuit, client: Client) -> None:
    job = planned(metric)
    job.backend = "abacus"
    with pytest.raises(UnsupportedError, match="there is no backend 'abacus'"):
        job.run(client)


def test_a_cluster_without_workers() -> None:
    with (
        LocalCluster(n_workers=0, processes=True, dashboard_address=":0") as cluster,
        Client(cluster) as client,
        pytest.raises(UnsupportedError, match="no worker") as caught,
    ):
        planned(difference(by_head_and_position(gpt2(), LENGTH))).run(client)
    assert "LocalCluster(n_workers=2)" in str(caught.value)
