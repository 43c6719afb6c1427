"""`tapeout compare` as a user meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import faulty
import pytest
import tiny
from command import Ran, words

from tapeout.compiler.backends import BACKENDS, Backend

Run = Callable[..., Ran]
FAST = ("--backends", "fx,torchscript", "-n", 4, "--repeat", 1)


def test_the_table(checkpoint: Path, run: Run) -> None:
    done = run("compare", checkpoint, *FAST, "--dtypes", "float32,bfloat16", "--bisect")
    assert (done.code, done.err) == (0, "")
    text = words(done.out)
    for way in ("fx", "torchscript", "Hugging Face", "rust_circuit"):
        assert f"{way} " in text
    assert "4 IOI prompts of" in text and "within 2e-05" in text and "within 0.05" in text
    assert "error in float32 as a multiple of Hugging Face's own: fx " in text
    assert "fx and torchscript in float32 agree at every node" in text
    assert "fx and torchscript in bfloat16 agree at every node" in text


def test_json_is_all_that_is_printed(checkpoint: Path, run: Run) -> None:
    done = run("compare", checkpoint, *FAST, "--json", "--bisect")
    assert (done.code, done.err, done.out.count("\n")) == (0, "", 1)
    found = json.loads(done.out)
    assert (found["within"], found["prompts"], found["inputs"]) == (True, 4, "IOI prompts")
    assert [way["name"] for way in found["ways"]] == ["fx", "torchscript", "Hugging Face", "rust_circuit"]
    assert found["bisect"] == [{"backends": ["fx", "torchscript"], "dtype": "float32", "first": None}]
    assert 0 < found["ways"][0]["max_abs_error"] < 1e-4 and found["ways"][0]["artefact_bytes"] > 1000


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_no_worse_than_twice_hugging_face(family: str, tmp_path: Path, run: Run) -> None:
    tokenizer = tiny.word_tokenizer()
    directory = tiny.save(getattr(tiny, family)(len(tokenizer)), tmp_path, tokenizer)
    options = ("--backends", "fx,torchscript,onnx", "-n", 60, "--repeat", 0, "--no-sizes", "--json")
    ways = {way["name"]: way["max_abs_error"] for way in json.loads(run("compare", directory, *options).out)["ways"]}
    for name in ("fx", "torchscript", "onnx"):
        assert 0 < ways[name] <= 2 * ways["Hugging Face"]


@pytest.mark.parametrize("output", [(), ("--json",)])
def test_out_of_tolerance_exits_with_1_and_is_bisected(
    checkpoint: Path, run: Run, monkeypatch: pytest.MonkeyPatch, output: tuple[str, ...]
) -> None:
    monkeypatch.setitem(BACKENDS, "faulty", Backend("faulty"))
    monkeypatch.setattr(faulty, "WRONG", "m0.norm")
    options = ("--backends", "fx,faulty", "-n", 4, "--repeat", 0, "--no-sizes", *output)
    done = run("compare", checkpoint, *options)
    assert done.code == 1
    assert done.err == (
        "error: out of tolerance: faulty in float32\nhint: --bisect names the first node at which two backends part\n"
    )
    done = run("compare", checkpoint, *options, "--bisect")
    assert (done.code, done.err) == (1, "error: out of tolerance: faulty in float32\n")
    if output:
        pairs = {tuple(each["backends"]): each["first"]["name"] for each in json.loads(done.out)["bisect"]}
        assert pairs == {("faulty", "reference"): "m0.norm", ("fx", "faulty"): "m0.norm"}
    else:
        assert "faulty and reference in float32 part at m0.norm (layer_norm_1e-05 [BATCH" in words(done.out)


def test_one_backend_is_bisected_beside_the_reference(checkpoint: Path, run: Run) -> None:
    done = run("compare", checkpoint, "--backends", "fx", "-n", 2, "--repeat", 0, "--no-sizes", "--bisect")
    assert (done.code, done.err) == (0, "")
    assert "fx and reference in float32 agree at every node" in done.out


def test_where_no_backend_gives_values_it_says_why(checkpoint: Path, run: Run) -> None:
    options = ("--backends", "onnx", "--dtypes", "bfloat16", "-n", 2, "--repeat", 0)
    done = run("compare", checkpoint, *options)
    assert done.code == 1
    assert done.err.startswith("error: no backend gave values\n  onnx in bfloat16: ONNX Runtime has no bfloat16")
    assert done.err.endswith("hint: other --backends or --dtypes\n")


def test_a_model_without_tokenizer_is_compared_on_random_tokens(tmp_path: Path, run: Run) -> None:
    directory = tiny.save(tiny.gpt2(60), tmp_path)
    found = json.loads(run("compare", directory, *FAST, "--json", "--length", 7).out)
    assert (found["within"], found["inputs"], found["length"]) == (True, "random prompts", 7)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--backends", "abacus"), "there is no backend abacus"),
        (("--backends", ","), "no backend was named"),
        (("--dtypes", ","), "no dtype was named"),
        (("--dtypes", "int64"), "cannot compare in"),
        (("--dtypes", "float3"), "float3"),
    ],
)
def test_bad_options(options: tuple[str, ...], said: str, checkpoint: Path, run: Run) -> None:
    done = run("compare", checkpoint, *options)
    assert (done.code, done.out) == (2, "")
    assert said in done.err and "hint: " in done.err
