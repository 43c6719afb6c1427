"""The rewriting benchmark runs, on a small model, and says what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from oracle_walk import ROOT, RUST, load_benchmark, needs_oracle

SMALL = ["--layers", "2", "--heads", "3", "--hidden", "12", "--vocab", "11", "--length", "4", "--repeat", "2"]
STEPS = [
    "configure", "conform", "substitute the call", "substitute all but norms", "rename blocks",
    "split by position", "rename positions",
]  # fmt: skip

load_benchmark("seed_walk")
rewrite = load_benchmark("rewrite")


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    measured: dict[str, Any] = rewrite.measure(rewrite.parse(SMALL))
    return measured


def test_what_is_measured(result: dict[str, Any]) -> None:
    walks = result["walks"]
    assert list(walks) == (["rust_circuit"] if RUST else []) + ["tapeout", "tapeout, tables"]
    assert len({walk["nodes"] for walk in walks.values()}) == 1
    assert walks["tapeout"]["rebuilt"] > walks["tapeout, tables"]["rebuilt"] > walks["tapeout"]["nodes"]
    for walk in walks.values():
        assert list(walk["steps"]) == STEPS
        assert walk["seconds"] > 0
        assert (walk["ratio"] is None) is (RUST is None)
    if RUST:
        assert walks["rust_circuit"]["ratio"] == walks["rust_circuit"]["ratio_again"] == 1
        assert walks["rust_circuit"]["rebuilt"] == walks["tapeout"]["rebuilt"]


@needs_oracle
def test_the_table(result: dict[str, Any]) -> None:
    text = rewrite.report(result)
    assert "GPT-2, 2 layers, 3 heads, 12 hidden, 4 positions" in text
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert rows[2:5] == ["rust_circuit", "tapeout", "tapeout, tables"]
    assert rows[7:] == STEPS
    assert "not installed" not in text


def test_json_without_the_oracle(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(rewrite, "rust_system", lambda: None)
    assert rewrite.main([*SMALL, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert list(found["walks"]) == ["tapeout", "tapeout, tables"]
    assert found["walks"]["tapeout"]["ratio"] is None
    assert "rust_circuit is not installed" in rewrite.report(found)


def test_help() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "rewrite.py"), "--help"]
    assert "--repeat" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_no_repetition(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        rewrite.parse(["--repeat", "0"])
    assert "at least 1" in capsys.readouterr().err
