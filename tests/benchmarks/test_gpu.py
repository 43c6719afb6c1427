"""The command for a GPU, rehearsed without one: parts, time limits, failures, results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def rehearse(out: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], Any]:
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--quick", "--out", str(out), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    results = out / "gpu-results.json"
    return done, json.loads(results.read_text()) if results.exists() else None


@pytest.mark.slow
def test_a_model_and_sweeps_are_measured_and_compared(tmp_path: Path) -> None:
    done, results = rehearse(tmp_path, "--only", "gpt2 float32", "--only", "sweeps")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"device", "versions", "seconds", "parts"} <= set(results)
    batches = results["parts"]["gpt2 float32"]["batches"]
    assert set(batches) == {"1", "16"}
    for facts in batches.values():
        assert {"Hugging Face", "by hand", "fx", "inductor"} <= set(facts["seconds"])
        assert all(error < 1e-5 for error in facts["errors"].values())
    assert results["parts"]["gpt2 float32"]["notes"] == []
    assert {"direct", "activation", "edges"} == set(results["parts"]["sweeps"])
    assert "x by hand" in done.stdout


def test_what_fails_costs_the_rest_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAPEOUT_DEBUG", "planted")
    done, results = rehearse(tmp_path, "--only", "sweeps", "--only", "tests")
    assert done.returncode == 1
    assert results["parts"]["sweeps"]["lost"] == "failed to measure"
    assert any("TAPEOUT_DEBUG holds planted" in line for line in results["parts"]["sweeps"]["said"])
    assert "passed" in results["parts"]["tests"]
    assert "TAPEOUT_DEBUG holds planted" in done.stdout


def test_what_is_not_ready_in_time_is_left_out(tmp_path: Path) -> None:
    done, results = rehearse(tmp_path, "--only", "gpt2 bfloat16", "--until", "0")
    assert done.returncode == 1
    assert results["parts"]["gpt2 bfloat16"]["lost"] == "was not ready in time"


def test_an_unknown_part_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    done, results = rehearse(tmp_path, "--only", "gpt3")
    assert done.returncode == 2
    assert "there are tests, gpt2 float32" in done.stderr
    assert results is None
