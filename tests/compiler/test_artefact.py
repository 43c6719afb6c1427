"""Saved artefacts: what comes back, what runs without tapeout, what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from batches import WRONG_INPUTS, as_tuple
from harness import symbol
from random_models import gpt2
from splits import by_head_and_position, difference
from tolerances import assert_close

from tapeout.compiler import Compiled, compile, compile_many, load, run_artefact, saving
from tapeout.compiler.run_artefact import Artefact, ArtefactProblem, InputProblem
from tapeout.ir import Add, Array, Einsum
from tapeout.ir.errors import ArtefactError, UnsupportedError
from tapeout.ir.files import folders

INPUTS = ["tokens", "labels"]
SLOW = pytest.param("inductor", marks=pytest.mark.slow)
TOKENS = {"tokens": torch.tensor([[1, 2, 3, 4, 5], [10, 0, 7, 7, 2]]), "labels": torch.tensor([[1, 2], [3, 4]])}
ONE = {name: value[:1] for name, value in TOKENS.items()}


class Saved:
    """The model's logit difference, compiled once a backend, and the folder where it was saved."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.compiled: dict[str, Compiled] = {}

    def __call__(self, backend: str) -> tuple[Compiled, Path]:
        folder = self.root / backend
        if backend not in self.compiled:
            self.compiled[backend] = compile(difference(by_head_and_position(gpt2(), 5)), backend, INPUTS)
            self.compiled[backend].save(folder)
        return self.compiled[backend], folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A small fx artefact that a test may break."""
    twice().save(tmp_path / "some.artefact")
    return tmp_path / "some.artefact"


def twice(backend: str = "fx") -> Compiled:
    x = symbol(1, (2,), "x")
    return compile(Add(x, x, Array(torch.tensor([0.0, 1.0]), "shift"), name="twice"), backend, ["x"])


# -- what comes back


@pytest.mark.parametrize("backend", ["fx", "torchscript", "onnx", SLOW])
def test_what_is_loaded_is_what_was_saved(saved: Saved, backend: str) -> None:
    compiled, folder = saved(backend)
    loaded = load(folder)
    assert (loaded.backend, loaded.inputs, loaded.roots) == (backend, compiled.inputs, compiled.roots)
    assert (loaded.dtype, loaded.device, loaded.passes) == (compiled.dtype, compiled.device, compiled.passes)
    assert loaded.cost(7) == compiled.cost(7)
    for values in (TOKENS, ONE):
        assert_close(loaded(**values), compiled(**values), torch.float32)
    assert loaded.to("cpu")(**ONE).shape == (1,)


def test_an_fx_artefact_reads_as_before(saved: Saved) -> None:
    compiled, folder = saved("fx")
    assert load(folder).source == compiled.source
    assert {file.name for file in folder.iterdir()} == {"manifest.json", "circuits"}


@pytest.mark.parametrize("backend", ["fx", "torchscript", "onnx", SLOW])
@pytest.mark.parametrize("what", WRONG_INPUTS)
def test_a_loaded_artefact_refuses_wrong_inputs(saved: Saved, backend: str, what: str) -> None:
    values, error = WRONG_INPUTS[what]
    with pytest.raises(error):
        load(saved(backend)[1])(**values)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_dtype_memory_limit_and_several_results_come_back(tmp_path: Path, dtype: str) -> None:
    x = symbol(1, (2,), "x")
    one = Array(torch.ones(2, dtype=getattr(torch, dtype)), "one")
    pair = [Einsum.scalar_mul(x, 2.0, "double"), Add(x, one)]
    compiled = compile_many(pair, "fx", ["x"], dtype=dtype, max_memory=10**6, batch=[8, 2])
    compiled.save(tmp_path / "pair")
    loaded = load(tmp_path / "pair")
    assert (loaded.max_memory, loaded.dtype, loaded.batch) == (10**6, compiled.dtype, (2, 8))
    double, more = as_tuple(loaded(x=torch.ones(3, 2, dtype=compiled.dtype)))
    assert double.tolist() == more.tolist() == [[2.0, 2.0]] * 3


@pytest.mark.parametrize("backend", ["fx", "torchscript", "onnx", SLOW])
def test_what_takes_no_inputs_is_saved_too(tmp_path: Path, backend: str) -> None:
    node = Add(Array(torch.ones(2), "a"), Array(torch.ones(2), "b"))
    compile(node, backend).save(tmp_path / "constant")
    assert load(tmp_path / "constant")().tolist() == [2.0, 2.0]


NAMES = [
    "self", "Self", "class", "None", "torch", "device", "inf", "nan", "NoneType", "Ellipsis", "print", "forward",
    "training", "state_dict", "code", "T", "a b", "a.b", "a_b", "'", "\n", "日本", "é", "0", "🙂", "n_", "__dict__",
]  # fmt: skip
"""Each means something to Python, torch.fx, TorchScript or a module, or is no identifier."""


@pytest.mark.parametrize("backend", ["fx", "torchscript", "onnx", SLOW])
def test_any_name(tmp_path: Path, backend: str) -> None:
    inputs = [symbol(number, (2,), name) for number, name in enumerate(NAMES)]
    arrays = [Array(torch.full((2,), 0.5 + number), name) for number, name in enumerate(NAMES)]
    products = [
        Einsum.from_einsum_string("a,a->a", *pair, name=pair[0].name) for pair in zip(inputs, arrays, strict=True)
    ]
    compiled = compile(Add(*products), backend, inputs)
    compiled.save(tmp_path / "names")
    values = {name: torch.full((3, 2), float(number)) for number, name in enumerate(NAMES)}
    expected = float(sum(number * (0.5 + number) for number in range(len(NAMES))))
    runs = [compiled, load(tmp_path / "names")]
    for each in (*runs, Artefact(tmp_path / "names")) if backend in ("torchscript", "inductor") else runs:
        assert_close(each(**values), torch.full((3, 2), expected), torch.float32)


def test_an_fx_artefact_can_be_loaded_for_another_device(small: Path) -> None:
    assert load(small, "meta")(x=torch.ones(3, 2, device="meta")).shape == (3, 2)


def test_others_cannot(tmp_path: Path) -> None:
    twice("torchscript").save(tmp_path / "script")
    with pytest.raises(ArtefactError, match="cannot run on meta"):
        load(tmp_path / "script", "meta")


# -- run.py, in a process where tapeout cannot be imported and no compiler is found


ALONE = """
import json, sys
sys.modules["tapeout"] = None
sys.path.insert(0, sys.argv[1])
import run, torch

def tensors(values):
    return {name: tensor(*value) for name, value in values.items()}

def tensor(shape, fill, dtype=None, device=None):
    return torch.full(shape, fill, dtype=getattr(torch, dtype), device=device) if shape else fill

artefact = run.Artefact(sys.argv[1])
given = json.load(sys.stdin)
right = {k: torch.tensor(v) for k, v in given["right"].items()}
refused = {}
for what, values in given["wrong"].items():
    try:
        artefact(**tensors(values))
    except run.InputProblem as error:
        refused[what] = str(error)
one = artefact(**{k: v[:1] for k, v in right.items()})
print(json.dumps({"values": artefact(**right).tolist(), "one": one.tolist(), "refused": refused,
    "imported": sorted(name for name in sys.modules if name.startswith(("tapeout.", "safetensors", "transformers")))}))
"""


def alone(arguments: list[str], given: str = "") -> subprocess.CompletedProcess[str]:
    """Runs Python with an empty PATH, so that no compiler can be called."""
    environment = {"PATH": "", "CXX": "no-such-compiler", "HOME": os.environ.get("HOME", "/")}
    command = [sys.executable, "-W", "ignore", "-I", *arguments]
    return subprocess.run(command, input=given, env=environment, capture_output=True, text=True, cwd="/")


def described(value: Any) -> list[Any]:
    if not isinstance(value, torch.Tensor):
        return [None, value]
    fill = int(value.view(-1)[0]) if value.numel() and value.device.type == "cpu" else 0
    return [list(value.shape), fill, str(value.dtype).removeprefix("torch."), str(value.device)]


@pytest.mark.parametrize("backend", ["torchscript", SLOW])
def test_run_py_needs_torch_alone_and_checks_its_inputs(saved: Saved, backend: str) -> None:
    compiled, folder = saved(backend)
    wrong = {what: {k: described(v) for k, v in values.items()} for what, (values, _) in WRONG_INPUTS.items()}
    right = {name: value.tolist() for name, value in TOKENS.items()}
    done = alone(["-c", ALONE, str(folder)], json.dumps({"right": right, "wrong": wrong}))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert_close(torch.tensor(found["values"]), compiled(**TOKENS), torch.float32)
    assert_close(torch.tensor(found["one"]), compiled(**ONE), torch.float32)
    assert set(found["refused"]) == set(WRONG_INPUTS)
    assert found["imported"] == []


ALONE_WITH_NUMPY = """
import json, sys
for name in ("tapeout", "torch", "onnx", "onnx_ir"):
    sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
import numpy, run

def array(shape, fill, dtype=None, device=None):
    return numpy.full(shape, fill, dtype=dtype) if shape else fill

artefact = run.Artefact(sys.argv[1])
given = json.load(sys.stdin)
right = {k: numpy.array(v) for k, v in given["right"].items()}
refused = {}
for what, values in given["wrong"].items():
    try:
        artefact(**{name: array(*value) for name, value in values.items()})
    except run.InputProblem as error:
        refused[what] = str(error)
print(json.dumps({"values": artefact(**right).tolist(), "refused": refused}))
"""


def test_run_py_of_an_onnx_artefact_needs_onnxruntime_and_numpy_alone(saved: Saved, tmp_path: Path) -> None:
    compiled, folder = saved("onnx")
    cases = {what: values for what, (values, _) in WRONG_INPUTS.items() if what != "another device"}
    wrong = {what: {k: described(v) for k, v in values.items()} for what, values in cases.items()}
    right = {name: value.tolist() for name, value in TOKENS.items()}
    done = alone(["-c", ALONE_WITH_NUMPY, str(folder)], json.dumps({"right": right, "wrong": wrong}))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert_close(torch.tensor(found["values"]), compiled(**TOKENS), torch.float32)
    assert set(found["refused"]) == set(cases)
    given = tmp_path / "inputs.json"
    given.write_text(json.dumps(right))
    done = alone([str(folder / "run.py"), str(given)])
    assert_close(torch.tensor(json.loads(done.stdout)), compiled(**TOKENS), torch.float32)
    given.write_text(json.dumps({"tokens": [[1.5, 2, 3, 4, 5]], "labels": [[1, 2]]}))
    done = alone([str(folder / "run.py"), str(given)])
    assert done.returncode == 2 and "tokens has dtype float64, not int64" in done.stderr


def test_run_py_is_a_command(saved: Saved, tmp_path: Path) -> None:
    compiled, folder = saved("torchscript")
    given, program = tmp_path / "inputs.json", str(folder / "run.py")
    given.write_text(json.dumps({name: value.tolist() for name, value in TOKENS.items()}))
    done = alone([program, str(given)])
    assert_close(torch.tensor(json.loads(done.stdout)), compiled(**TOKENS), torch.float32)
    given.write_text(json.dumps({"tokens": [[1, 2, 3, 4, 11]], "labels": [[1, 2]]}))
    done = alone([program, str(given)])
    assert (done.returncode, done.stdout) == (2, "")
    assert "tokens holds 11, outside 0 to 10" in done.stderr


MISUSES: dict[str, tuple[str, str]] = {
    "no file": ("", "no JSON file"),
    "no JSON": ("{", "no JSON file"),
    "a list": ("[1]", "no object"),
    "a ragged list": ('{"tokens": [[1], [1, 2]]}', "no regular list"),
    "numbers with fractions for tokens": ('{"tokens": [[1.5, 2, 3, 4, 5]], "labels": [[1, 2]]}', "dtype"),
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_the_command_says_what_is_wrong(
    saved: Saved, tmp_path: Path, misuse: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, message = MISUSES[misuse]
    if text:
        (tmp_path / "inputs.json").write_text(text)
    monkeypatch.setattr(run_artefact, "__file__", str(saved("torchscript")[1] / "run.py"))
    assert run_artefact.main([str(tmp_path / "inputs.json")]) == 2
    assert message in capsys.readouterr().err


def test_the_command_without_a_file_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_artefact.main([]) == 2
    assert "inputs.json" in capsys.readouterr().err


@pytest.mark.parametrize("what", WRONG_INPUTS)
def test_run_py_refuses_in_this_process_too(saved: Saved, what: str) -> None:
    with pytest.raises(InputProblem):
        Artefact(saved("torchscript")[1])(**WRONG_INPUTS[what][0])


# -- what is refused


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("file", ["manifest.json", "circuits/circuit.txt", "circuits/arrays.safetensors"])
@pytest.mark.parametrize("change", [truncate, flip, Path.unlink])
def test_altered_files_are_refused(small: Path, file: str, change: Callable[[Path], None]) -> None:
    change(small / file)
    with pytest.raises(ArtefactError) as caught:
        load(small)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("backend", "file"), [("torchscript", "model.pt"), ("torchscript", "run.py"), ("onnx", "model.onnx")]
)
def test_altered_code_is_refused(tmp_path: Path, backend: str, file: str) -> None:
    folder = tmp_path / "code"
    twice(backend).save(folder)
    flip(folder / file)
    with pytest.raises(ArtefactError, match="altered"):
        load(folder)
    with pytest.raises(ArtefactProblem, match="altered"):
        Artefact(folder)


def resealed(folder: Path, **changes: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    manifest["sha256"] = run_artefact.seal(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "something else"}, "no tapeout artefact"),
        ({"format_version": 2}, "format version 2"),
        ({"backend": "unknown"}, "does not say"),
        ({"inputs": [{"name": "x"}]}, "does not say"),
        ({"origins": [[10**6, "x"]]}, "does not say"),
        ({"dtype": 7}, "does not say"),
    ],
)
def test_manifests_of_another_form_are_refused(small: Path, changes: dict[str, Any], message: str) -> None:
    resealed(small, **changes)
    with pytest.raises(ArtefactError, match=message):
        load(small)


def test_compiled_code_of_another_torch_is_refused_and_what_is_portable_is_not(tmp_path: Path) -> None:
    for backend in ("torchscript", "fx", "onnx"):
        twice(backend).save(tmp_path / backend)
        resealed(tmp_path / backend, torch="1.0.1")
    with pytest.raises(ArtefactError, match=r"torch 1\.0"):
        load(tmp_path / "torchscript")
    with pytest.raises(ArtefactProblem, match=r"torch 1\.0"):
        Artefact(tmp_path / "torchscript")
    for backend in ("fx", "onnx"):
        assert load(tmp_path / backend)(x=torch.ones(1, 2)).tolist() == [[2.0, 3.0]]


@pytest.mark.parametrize("change", [{"machine": "vax"}, {"system": "VMS"}, {"cpu_capability": "AMX"}])
def test_a_package_for_another_machine_is_refused(monkeypatch: pytest.MonkeyPatch, change: dict[str, str]) -> None:
    here = run_artefact.this_platform() | {"cpu_capability": "AVX2"}
    monkeypatch.setattr(run_artefact, "this_platform", lambda: here)
    manifest = {"backend": "inductor", "torch": torch.__version__, "platform": here}
    run_artefact.check_runs_here(manifest)
    with pytest.raises(ArtefactProblem, match="compile it again"):
        run_artefact.check_runs_here(manifest | {"platform": here | change})


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.write_text("x"), Path.mkdir])
def test_what_is_no_artefact_is_refused(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    make(tmp_path / "thing")
    with pytest.raises(ArtefactError):
        load(tmp_path / "thing")
    if (tmp_path / "thing").exists():
        with pytest.raises(ArtefactError):
            twice().save(tmp_path / "thing", force=True)


# -- replacing


def test_what_is_there_is_replaced_only_when_told(small: Path) -> None:
    with pytest.raises(ArtefactError, match="exists"):
        twice().save(small)
    x = symbol(1, (2,), "x")
    compile(Add(x, x, x), "fx", ["x"]).save(small, force=True)
    assert load(small)(x=torch.ones(1, 2)).tolist() == [[3.0, 3.0]]
    assert [file.name for file in small.parent.iterdir()] == [small.name]


@pytest.mark.parametrize("step", ["save_circuits", "fingerprint", "publish"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_interrupted_save_leaves_the_old(
    small: Path, step: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(folders if step == "publish" else saving, step, fail)
    with pytest.raises(ArtefactError if isinstance(error, OSError) else KeyboardInterrupt):
        twice().save(small, force=True)
    monkeypatch.undo()
    assert [file.name for file in small.parent.iterdir()] == [small.name]
    assert load(small)(x=torch.ones(1, 2)).tolist() == [[2.0, 3.0]]


def test_the_old_is_found_when_the_process_died_between_two_renames(small: Path) -> None:
    small.rename(small.with_name(f".{small.name}.previous"))
    assert load(small)(x=torch.ones(1, 2)).tolist() == [[2.0, 3.0]]


def test_a_backend_that_cannot_be_saved_says_so(tmp_path: Path) -> None:
    from dataclasses import replace

    with pytest.raises(UnsupportedError, match="cannot be saved"):
        replace(twice(), backend="abacus").save(tmp_path / "x")
