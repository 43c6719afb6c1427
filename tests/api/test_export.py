"""`tapeout export` and `tapeout verify` as a user meets them."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from command import Ran, Terminal, words

from tapeout.compiler import load

Run = Callable[..., Ran]


@pytest.mark.parametrize("format", ["onnx", "torchscript", "fx"])
def test_export_and_verify(checkpoint: Path, tmp_path: Path, run: Run, format: str) -> None:
    out = tmp_path / "out"
    done = run("export", checkpoint, "--task", "ioi", "--out", out, "--format", format)
    assert (done.code, done.err) == (0, "")
    assert f"{out}: {format} in float32" in done.out and "4 IOI prompts" in words(done.out)
    assert "within the tolerance of 2e-05 of that" in done.out
    assert (out / "README.md").is_file()
    done = run("verify", out)
    assert (done.code, done.err) == (0, "")
    assert "every file is as it was exported" in done.out and "the tolerance is 2e-05 of the largest value" in done.out


def test_json(checkpoint: Path, tmp_path: Path, run: Run) -> None:
    options = ("--format", "fx", "--dtype", "float64", "-n", 3, "--seed", 5, "--json")
    done = run("export", checkpoint, "--out", tmp_path / "out", *options)
    assert (done.code, done.err, done.out.count("\n")) == (0, "", 1)
    made = json.loads(done.out)
    said = made["certificate"]
    assert (said["seed"], said["dtype"], said["inputs"]["rows"], said["model"]) == (5, "float64", 3, str(checkpoint))
    assert said["errors"]["max_abs_error"] < 1e-12 and made["bytes"] > 1000
    done = run("verify", tmp_path / "out", "--json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)["certificate"] == said


def test_plain_opsets(checkpoint: Path, tmp_path: Path, run: Run) -> None:
    options = ("export", checkpoint, "--out", tmp_path / "out", "--opset", 17)
    refused = run(*options)
    assert (refused.code, refused.out) == (2, "")
    assert "error: opset 17 cannot express" in refused.err and "hint: use opset 23 or newer" in refused.err
    assert not (tmp_path / "out").exists()
    assert run(*options, "--no-attention-op").code == 0
    assert "# opset 17" in load(tmp_path / "out").source


def test_a_model_without_tokenizer(tmp_path: Path, run: Run) -> None:
    directory = tiny.save(tiny.gpt2(60), tmp_path / "model")
    done = run("export", directory, "--out", tmp_path / "out", "--format", "fx", "--length", 7, "--json")
    said = json.loads(done.out)["certificate"]
    assert (said["prompts"], said["inputs"]["shapes"]["tokens"]) == ("random prompts", [4, 7])
    assert load(tmp_path / "out").inputs[0].symbol.shape == (7,)


def test_an_existing_folder(checkpoint: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    options = ("export", checkpoint, "--out", out, "--format", "fx")
    assert run(*options).code == 0
    before = (out / "certificate.json").read_text()
    done = run(*options, "--seed", 1)
    assert (done.code, done.out) == (2, "")
    assert f"error: {out} exists" in done.err and "hint: " in done.err and "--force" in done.err
    assert (out / "certificate.json").read_text() == before
    assert run(*options, "--seed", 1, "--force").code == 0
    assert json.loads((out / "certificate.json").read_text())["seed"] == 1


@pytest.mark.parametrize("output", [(), ("--json",)])
@pytest.mark.parametrize("file", ["certificate.json", "model.onnx", "inputs.safetensors"])
def test_verify_finds_what_was_altered(
    checkpoint: Path, tmp_path: Path, run: Run, file: str, output: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    assert run("export", checkpoint, "--out", out).code == 0
    data = bytearray((out / file).read_bytes())
    data[len(data) // 2] ^= 1
    (out / file).write_bytes(data)
    done = run("verify", out, *output)
    assert done.code == 1
    assert done.err.startswith("error: ") and file in done.err and "altered" in done.err and "hint: " in done.err
    if output:
        found = json.loads(done.out)
        assert found["within"] is False and file in found["problem"] and found["hint"]


def test_verify_finds_other_numbers(
    checkpoint: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert run("export", checkpoint, "--out", out, "--format", "fx").code == 0
    monkeypatch.setattr("tapeout.backends.fx.executable.FxExecutable.__call__", lambda *_: torch.zeros(4))
    done = run("verify", out)
    assert done.code == 1
    assert (
        "error: the numbers are not those of the certificate" in done.err and "hint: compare the versions" in done.err
    )


@pytest.mark.parametrize("output", [(), ("--json",)])
@pytest.mark.parametrize("name", [".", "nothing"])
def test_verify_of_nothing(tmp_path: Path, run: Run, name: str, output: tuple[str, ...]) -> None:
    done = run("verify", tmp_path / name, *output)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: there is no ") and "certificate.json" in done.err
    assert "hint: give the folder that tapeout export wrote" in done.err


@pytest.mark.parametrize("command", [("export",), ("compile", "--model"), ("patch",)])
def test_a_folder_that_cannot_be_written_is_found_before_anything_is_loaded(
    command: tuple[str, ...], tmp_path: Path, run: Run
) -> None:
    (tmp_path / "file").write_text("x")
    done = run(*command, tmp_path / "no model", "--out", tmp_path / "file" / "out")
    assert (done.code, done.out) == (2, "")
    assert "file/out cannot be written: " in done.err and "hint: check the disk's space and the folder" in done.err
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_progress_is_shown_and_ctrl_c_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    terminal = Terminal("export", checkpoint, "--out", tmp_path / "out", "-n", 2000)
    terminal.wait_for("reference")
    time.sleep(0.1)
    terminal.process.send_signal(signal.SIGINT)
    done = terminal.finish()
    assert (done.code, done.out) == (130, "")
    assert done.err.rstrip().endswith("stopped") and "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []
