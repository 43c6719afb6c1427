"""`tapeout patch` as a user meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from command import Ran, words

from tapeout.models import circuit_of, split_circuit
from tapeout.models.checkpoint import load_checkpoint
from tapeout.tasks.ioi import IOIDataset
from tapeout.tasks.ioi.circuit import logit_diff_circuit
from tapeout.tasks.patching import SweepResult, activation_patch
from tapeout.tasks.patching.sweeps.forward import Passage

Run = Callable[..., Ran]
FILES = {"heat_map.html", "heat_map.png", "summary.json", "sweep.json", "sweep.npz"}


def test_the_folder_and_what_is_said(checkpoint: Path, run: Run, tmp_path: Path) -> None:
    done = run("patch", checkpoint, "--out", tmp_path / "out", "-n", 3)
    assert done.code == 0
    assert {file.name for file in (tmp_path / "out").iterdir()} >= FILES
    assert done.err.startswith("4 variants: ") and "TFLOP" in done.err
    text = words(done.out)
    assert "strongest of 4 variants" in text and "over 3 prompts without a patch" in text
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["sweep"], summary["part"], summary["flip"], summary["n"]) == ("heads", "out", "names", 3)
    assert summary["axes"] == {"layer": [0, 1], "head": [0, 1]}
    strongest = summary["strongest"][0]
    effects = np.array(summary["effects"])
    assert strongest["effect"] == effects[strongest["layer"], strongest["head"]]
    assert abs(strongest["effect"]) == np.abs(effects).max() > 1e-4
    assert f"{strongest['effect']:+.4f}" in text


def test_numbers_are_those_of_single_patches(checkpoint: Path, run: Run, tmp_path: Path) -> None:
    run("patch", checkpoint, "--out", tmp_path / "out", "-n", 3, "--flip", "S2", "--dtype", "float64")
    loaded = load_checkpoint(checkpoint)
    data = IOIDataset("mixed", 3, tokenizer=loaded.tokenizer)
    circuits, info = circuit_of(loaded.model)
    metric = logit_diff_circuit(split_circuit(circuits, info, data.max_len)[0])
    patched = activation_patch(metric, ["a1.h0"], baseline=data, source=data.gen_flipped_prompts("S2"))
    found = SweepResult.load(tmp_path / "out" / "sweep").values.sel(layer=1, head=0)
    assert np.allclose(found, patched.evaluate("float64").numpy(), atol=1e-9)


@pytest.mark.parametrize(
    ("sweep", "axes"),
    [
        ("heads-positions", ["layer", "head", "position"]),
        ("edges", ["sender", "receiver"]),
        ("direct", ["layer", "head"]),
    ],
)
def test_json_of_each_sweep(checkpoint: Path, run: Run, tmp_path: Path, sweep: str, axes: list[str]) -> None:
    done = run("patch", checkpoint, "--out", tmp_path / "out", "-n", 2, "--sweep", sweep, "--json")
    assert (done.code, done.err, done.out.count("\n")) == (0, "", 1)
    found = json.loads(done.out)
    assert (list(found["axes"]), found["complete"]) == (axes, True)
    assert found == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {file.name for file in (tmp_path / "out").iterdir()} >= FILES


def test_a_part_that_the_sweep_cannot_be_of(checkpoint: Path, run: Run, tmp_path: Path) -> None:
    done = run("patch", checkpoint, "--out", tmp_path / "out", "--sweep", "edges", "--part", "pattern")
    assert done.code == 2 and "cannot be of the part 'pattern'" in done.err and "it takes q, k, v" in done.err
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_replaced_only_when_asked_for(checkpoint: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("x")
    done = run("patch", checkpoint, "--out", out, "-n", 2)
    assert done.code == 2 and f"{out} exists" in done.err and "--force" in done.err
    done = run("patch", checkpoint, "--out", out, "-n", 2, "--force")
    assert done.code == 2 and "was not written by this command" in done.err
    assert [file.name for file in out.iterdir()] == ["mine.txt"]
    assert run("patch", checkpoint, "--out", tmp_path / "other", "-n", 2).code == 0
    assert run("patch", checkpoint, "--out", tmp_path / "other", "-n", 2, "--force").code == 0


def test_a_memory_limit_below_one_variant(checkpoint: Path, run: Run, tmp_path: Path) -> None:
    done = run("patch", checkpoint, "--out", tmp_path / "out", "-n", 2, "--max-memory", 0.000001)
    assert done.code == 2 and "max_memory" in done.err and "hint" in done.err


@pytest.mark.parametrize("size", ["nan", "inf", "0", "-1"])
def test_a_memory_limit_that_is_none(checkpoint: Path, run: Run, tmp_path: Path, size: str) -> None:
    done = run("patch", checkpoint, "--out", tmp_path / "out", "--max-memory", size)
    assert (done.code, done.out) == (2, "") and f"error: --max-memory is {size}\nhint: give GB" in done.err


def test_an_unknown_backend_is_found_at_once(run: Run, tmp_path: Path) -> None:
    done = run("patch", tmp_path / "no model", "--out", tmp_path / "out", "--backend", "reference")
    assert done.code == 2 and "'reference' is not one of 'fx'" in words(done.err)


def test_numbers_outlive_a_picture_that_cannot_be_drawn(
    checkpoint: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no fonts")

    monkeypatch.setattr("tapeout.patch_command.write_heat_map", fail)
    done = run("patch", checkpoint, "--out", tmp_path / "out", "-n", 2)
    assert done.code == 2 and "error: no fonts\nhint: " in done.err
    assert {file.name for file in (tmp_path / "out").iterdir()} >= {"summary.json", "sweep.npz"}
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_weights_that_are_no_numbers(run: Run, tmp_path: Path) -> None:
    tokenizer = tiny.word_tokenizer()
    model = tiny.gpt2(len(tokenizer))
    torch.nn.init.constant_(model.transformer.h[0].mlp.c_fc.bias, float("nan"))
    directory = tiny.save(model, tmp_path / "model", tokenizer)
    done = run("patch", directory, "--out", tmp_path / "out", "-n", 2, "--json")
    found = json.loads(done.out, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert found["baseline_mean"] is None and found["effects"] == [[None, None], [None, None]]


def test_ctrl_c_writes_what_is_finished(
    checkpoint: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = Passage.batches

    def interrupted(self: Any) -> Any:
        if self.pieces.device.type != "meta":  # the estimate
            raise KeyboardInterrupt
        return batches(self)

    monkeypatch.setattr(Passage, "batches", interrupted)
    done = run("patch", checkpoint, "--out", tmp_path / "out", "-n", 2)
    assert done.code == 130 and "interrupted: what was not computed is left blank" in words(done.out)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert not summary["complete"] and summary["effects"] == [[None, None], [None, None]]
    assert summary["baseline_mean"] is not None
