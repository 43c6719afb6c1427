"""The torchscript backend: every case against the reference, and what a file of it can do without tapeout."""

from __future__ import annotations

import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from batches import WRONG_INPUTS, Batch, as_tuple
from harness import symbol
from hypothesis import given, settings
from random_models import gpt2, llama
from splits import by_head_and_position, difference
from tolerances import assert_close

from tapeout.backends.torchscript.executable import TorchScriptExecutable, load, scripted
from tapeout.compiler import Compiled, compile, compile_many
from tapeout.ir import Add, Circuit
from tapeout.ir.errors import (
    ArtefactError,
    LoweringError,
    UnsupportedError,
)
from tapeout.testing import random_circuit
from tapeout.testing.cases import CASES
from tapeout.testing.strategies import SEEDS

F32, F64 = torch.float32, torch.float64
MODELS: dict[str, Any] = {"gpt2": gpt2, "llama": llama}


@cache
def split_model() -> Compiled:
    return compile(difference(by_head_and_position(gpt2(), 5)), "torchscript", ["tokens", "labels"])


def check(circuits: list[Circuit], level: int = 1) -> None:
    batch = Batch.of(circuits)
    compiled = compile_many(batch.circuits, "torchscript", batch.names, dtype=F64, level=level)
    for _ in range(3):  # TorchScript runs another graph once it has seen some calls
        found = as_tuple(compiled(**batch.values(F64)))
    rows = len(batch.expected[0]) if batch.names else None
    for value, expected in zip(found, batch.expected, strict=True):
        assert_close(value, expected if rows else expected[0], F64)


@pytest.mark.parametrize("name", CASES)
def test_a_case_of_the_catalogue(name: str) -> None:
    check([CASES[name](F64)], level=0)


@given(SEEDS)
@settings(max_examples=40)
def test_random_circuits(seed: int) -> None:
    check([random_circuit(Random(seed))])


@pytest.mark.parametrize("family", MODELS)
def test_a_split_model_with_batches_of_every_size(family: str) -> None:
    circuit = difference(by_head_and_position(MODELS[family](), 5))
    script, plain = (compile(circuit, backend, ["tokens", "labels"]) for backend in ("torchscript", "fx"))
    for rows in (1, 7, 64, 100, 1):
        values = {"tokens": torch.randint(11, (rows, 5)), "labels": torch.randint(11, (rows, 2))}
        assert_close(script(**values), plain(**values), F32)


def test_several_roots_give_a_tuple() -> None:
    x = symbol(1, (2,), "x")
    compiled = compile_many([Add(x, x), x], "torchscript", ["x"])
    twice, same = compiled(x=torch.ones(3, 2))
    assert twice.tolist() == [[2.0, 2.0]] * 3
    assert same.tolist() == [[1.0, 1.0]] * 3


def test_the_source_is_code_to_read() -> None:
    x = symbol(1, (2,), "x")
    assert "def forward" in compile(Add(x, x, name="twice"), "torchscript", ["x"]).source


# -- wrong inputs


@pytest.mark.parametrize("what", WRONG_INPUTS)
def test_wrong_inputs_are_errors(what: str) -> None:
    values, error = WRONG_INPUTS[what]
    with pytest.raises(error):
        split_model()(**values)


# -- files, devices, warnings


def executable() -> TorchScriptExecutable:
    x = symbol(1, (2,), "x")
    made = compile(Add(x, x), "torchscript", ["x"]).executable
    assert isinstance(made, TorchScriptExecutable)
    return made


def test_a_file_runs_in_a_process_without_tapeout(tmp_path: Path) -> None:
    executable().save(tmp_path / "model.pt")
    program = (
        "import sys; sys.modules['tapeout'] = None\n"
        "import torch; print(torch.jit.load(sys.argv[1])(torch.ones(3, 2)).tolist())"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, str(tmp_path / "model.pt")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == str([[2.0, 2.0]] * 3)


def test_a_loaded_module_stays_where_it_is(tmp_path: Path) -> None:
    executable().save(tmp_path / "model.pt")
    loaded = load(tmp_path / "model.pt", torch.device("cpu"))
    assert loaded(torch.ones(1, 2)).tolist() == [[2.0, 2.0]]
    with pytest.raises(UnsupportedError, match="cannot move"):
        loaded.to(torch.device("meta"))
    assert loaded.to(torch.device("cpu")) is loaded
    assert executable().to(torch.device("meta"))(torch.ones(1, 2, device="meta")).shape == (1, 2)


def test_what_is_no_module_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"hello")
    with pytest.raises(ArtefactError, match="no TorchScript module"):
        load(tmp_path / "model.pt", torch.device("cpu"))


def test_what_cannot_be_scripted_is_a_lowering_error() -> None:
    graph = torch.fx.Graph()
    graph.output(graph.call_function(torch.Tensor.to, (graph.placeholder("x"), torch.float64)))
    with pytest.raises(LoweringError, match="TorchScript refuses"):
        scripted(torch.fx.GraphModule(torch.nn.Module(), graph), torch.device("cpu"))


def test_the_known_warnings_are_hidden_and_others_are_not() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        executable()
        with pytest.raises(DeprecationWarning, match=r"torch\.jit"):
            torch.jit.script(torch.nn.Identity())
