"""Exported artefacts: their certificates, the page that runs them without tapeout, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import faulty
import pytest
import torch
from batches import WRONG_INPUTS
from harness import symbol
from random_models import gpt2
from splits import by_head_and_position, difference

from tapeout.compiler import compile, export, load, run_artefact, saving, verify
from tapeout.compiler.artefacts import certificate
from tapeout.compiler.artefacts.certificate import CERTIFICATE, INPUTS, OUTPUTS, circuit_hash
from tapeout.compiler.artefacts.export import FORMATS, README
from tapeout.compiler.backends import BACKENDS, Backend
from tapeout.compiler.checks.tolerances import Deviation
from tapeout.ir import Add, Array, Circuit, Einsum
from tapeout.ir.errors import ArtefactError, UnsupportedError

TOKENS = {"tokens": torch.tensor([[1, 2, 3, 4, 5], [10, 0, 7, 7, 2]]), "labels": torch.tensor([[1, 2], [3, 4]])}
EACH_FORMAT = pytest.mark.parametrize(
    "format", [pytest.param(name, marks=[pytest.mark.slow] * (name == "pt2")) for name in FORMATS]
)


def metric() -> Circuit:
    return difference(by_head_and_position(gpt2(), 5))


def twice() -> Circuit:
    x = symbol(1, (2,), "x")
    return Add(x, x, Array(torch.tensor([0.0, 1.0]), "shift"), name="twice")


class Exported:
    """The logit difference, exported once a format."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, format: str) -> Path:
        folder = self.root / format
        if not folder.exists():
            export(metric(), TOKENS, folder, format, about={"task": "ioi", "seed": 3})
        return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tmp_path_factory.mktemp("exported"))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A small artefact that a test may break."""
    export(twice(), {"x": torch.ones(3, 2)}, tmp_path / "small", "fx")
    return tmp_path / "small"


# -- what is written


@EACH_FORMAT
def test_an_artefact_verifies(exported: Exported, format: str) -> None:
    found = verify(exported(format))
    assert found.within
    assert found.from_recorded.within(1e-6)
    assert found.deviation.absolute <= 2 * found.certificate["errors"]["max_abs_error"] + 1e-6
    assert json.loads(json.dumps(found.to_json()))["within"] is True


@EACH_FORMAT
def test_the_certificate_says_what_was_run(exported: Exported, format: str) -> None:
    folder = exported(format)
    said = json.loads((folder / CERTIFICATE).read_text())
    assert (said["export"], said["task"], said["seed"], said["dtype"]) == (format, "ioi", 3, "float32")
    assert said["circuit"]["sha256"] == circuit_hash(metric())
    assert set(said["versions"]) == {"tapeout", "torch", "onnx", "onnxruntime"}
    assert said["versions"]["torch"] == torch.__version__
    assert said["inputs"]["shapes"] == {"tokens": [2, 5], "labels": [2, 2]}
    assert said["inputs"]["sha256"] == run_artefact.fingerprint(folder / INPUTS)["sha256"]  # type: ignore[index]
    assert 0 < said["errors"]["max_abs_error"] < said["tolerance"] * said["errors"]["largest_value"]
    one = load(folder)(**TOKENS)
    assert Deviation.of(one, certificate._read_tensors(folder / OUTPUTS)["reference"]).within(2e-5)


def code_of(page: str) -> str:
    (block,) = re.findall(r"```python\n(.*?)```", page, re.S)
    return str(block)


ALONE = """
import json, sys
for name in {absent}:
    sys.modules[name] = None
sys.path.insert(0, "")
{code}
print(json.dumps(result.tolist()))
"""
ABSENT = {"onnx": ["tapeout", "torch", "onnx"], "pt2": ["tapeout"], "torchscript": ["tapeout"], "fx": []}


@EACH_FORMAT
def test_the_page_runs_without_tapeout(exported: Exported, format: str) -> None:
    folder = exported(format)
    page = (folder / README).read_text(encoding="utf-8")
    assert "| tokens | int64 | [N, 5] | 0 to 10 |" in page and FORMATS[format].needs in page
    code = ALONE.format(absent=ABSENT[format], code=code_of(page))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr
    zeros = {name: torch.zeros(2, value.shape[1], dtype=torch.int64) for name, value in TOKENS.items()}
    assert Deviation.of(torch.tensor(json.loads(done.stdout)), load(folder)(**zeros)).within(1e-6)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_other_dtypes(tmp_path: Path, dtype: str) -> None:
    export(twice(), {"x": torch.full((3, 2), 0.5, dtype=torch.float64)}, tmp_path / "small", "fx", dtype)
    found = verify(tmp_path / "small")
    assert (found.certificate["dtype"], found.deviation.absolute, found.within) == (dtype, 0.0, True)


def test_without_inputs(tmp_path: Path) -> None:
    export(Add(Array(torch.ones(2), "a"), name="sum"), {}, tmp_path / "constant", "onnx")
    assert verify(tmp_path / "constant").within


def test_options_reach_the_backend(tmp_path: Path) -> None:
    export(metric(), TOKENS, tmp_path / "old", "onnx", options={"opset": 17, "attention_op": False})
    assert verify(tmp_path / "old").within
    assert "# opset 17" in load(tmp_path / "old").source


# -- the circuit's hash


def test_the_hash_is_that_of_the_content() -> None:
    assert circuit_hash(metric()) == circuit_hash(metric())
    assert circuit_hash(twice()) != circuit_hash(twice().rename("other"))
    other = twice().update("shift", lambda _: Array(torch.tensor([0.0, 1.5]), "shift"))
    assert circuit_hash(twice()) != circuit_hash(other)


def test_the_hash_is_the_same_in_every_process() -> None:
    code = (
        "from random_models import gpt2; from splits import by_head_and_position, difference\n"
        "from tapeout.compiler.artefacts.certificate import circuit_hash\n"
        "print(circuit_hash(difference(by_head_and_position(gpt2(), 5))))"
    )
    tests = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [tests, os.environ.get("PYTHONPATH", "")]))
    environment = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == circuit_hash(metric())


# -- what is refused


def test_what_exists_is_replaced_only_when_told(small: Path) -> None:
    with pytest.raises(ArtefactError, match=r"(?s)exists.*hint: give another name, or force=True"):
        export(twice(), {"x": torch.ones(3, 2)}, small, "fx")
    export(Einsum.scalar_mul(symbol(1, (2,), "x"), 3.0), {"x": torch.ones(3, 2)}, small, "fx", force=True)
    assert load(small)(x=torch.ones(1, 2)).tolist() == [[3.0, 3.0]]
    assert verify(small).within
    foreign = small.with_name("foreign")
    foreign.mkdir()
    with pytest.raises(ArtefactError, match=r"(?s)no artefact of tapeout.*hint: give another name"):
        export(twice(), {"x": torch.ones(3, 2)}, foreign, "fx", force=True)


def test_what_exists_is_found_before_anything_is_computed(small: Path) -> None:
    with pytest.raises(ArtefactError, match="exists"):
        export(twice(), {"no such input": torch.ones(1)}, small, "fx")


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
WRITES: dict[str, tuple[Any, str]] = {
    "the model": (saving, "save_circuits"),
    "the manifest": (saving, "fingerprint"),
    "the inputs": (certificate, "_write_tensors"),
    "the certificate": (certificate, "seal"),
    "the page": (sys.modules["tapeout.compiler.artefacts.export"], "readme"),
}


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()], ids=["full disk", "interrupted"])
@pytest.mark.parametrize("what", WRITES)
@pytest.mark.parametrize("force", [False, True])
def test_nothing_half_written_is_left(
    small: Path, what: str, error: BaseException, force: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(*WRITES[what], fail)
    target = small if force else small.with_name("new")
    with pytest.raises(ArtefactError if error is FULL else KeyboardInterrupt) as caught:
        export(Einsum.scalar_mul(symbol(1, (2,), "x"), 3.0), {"x": torch.ones(3, 2)}, target, "fx", force=force)
    if error is FULL:
        assert "No space left on device\nhint: check the disk's space" in str(caught.value)
    monkeypatch.undo()
    assert [file.name for file in small.parent.iterdir()] == [small.name]
    assert verify(small).within and load(small)(x=torch.ones(1, 2)).tolist() == [[2.0, 3.0]]


LIMITED = """
import resource, signal, sys
import torch
from splits import by_head_and_position, difference
from random_models import gpt2
from tapeout.compiler import export
from tapeout.ir.errors import ArtefactError

metric = difference(by_head_and_position(gpt2(n_embd=32, n_inner=64), 5))
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))  # a write beyond fails, as on a full disk
try:
    export(metric, {"tokens": torch.ones(2, 5, dtype=torch.int64), "labels": torch.ones(2, 2, dtype=torch.int64)},
           sys.argv[1], sys.argv[2])
except ArtefactError as error:
    print(error)
"""


@pytest.mark.skipif(find_spec("resource") is None, reason="limits of file sizes are those of POSIX")
@pytest.mark.parametrize("format", [name for name in FORMATS if name != "pt2"])
def test_a_write_that_fails_midway_is_an_error_in_every_format(tmp_path: Path, format: str) -> None:
    tests = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [tests, os.environ.get("PYTHONPATH", "")]))
    environment = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", LIMITED, str(tmp_path / "new"), format]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "cannot be written" in done.stdout and "hint: check the disk's space" in done.stdout
    assert list(tmp_path.iterdir()) == []


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("file", [CERTIFICATE, INPUTS, OUTPUTS, "manifest.json", "circuits/arrays.safetensors"])
@pytest.mark.parametrize("change", [truncate, flip, Path.unlink])
def test_altered_files_are_found(small: Path, file: str, change: Callable[[Path], None]) -> None:
    change(small / file)
    with pytest.raises(ArtefactError) as caught:
        verify(small)
    assert Path(file).name in caught.value.message or "cannot be read" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("file", ["model.onnx", "run.py"])
def test_an_altered_model_is_found(tmp_path: Path, file: str) -> None:
    export(twice(), {"x": torch.ones(3, 2)}, tmp_path / "small", "onnx")
    flip(tmp_path / "small" / file)
    with pytest.raises(ArtefactError, match=rf"(?s){file}.*altered.*hint: "):
        verify(tmp_path / "small")


def resealed(folder: Path, **changes: Any) -> None:
    said = json.loads((folder / CERTIFICATE).read_text()) | changes
    said["sha256"] = run_artefact.seal(said)
    (folder / CERTIFICATE).write_text(json.dumps(said))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "something else"}, "altered"),
        ({"format_version": 2}, "format version 2"),
        ({"inputs": None}, "does not say"),
        ({"tolerance": "large"}, "does not say"),
        ({"dtype": "float64"}, "computes in float32, its certificate says float64"),
    ],
)
def test_certificates_of_another_form_are_refused(small: Path, changes: dict[str, Any], message: str) -> None:
    resealed(small, **changes)
    with pytest.raises(ArtefactError, match=rf"(?s){message}.*hint: "):
        verify(small)


def test_no_certificate(tmp_path: Path) -> None:
    compile(twice(), "fx", ["x"]).save(tmp_path / "plain")
    for folder in (tmp_path / "plain", tmp_path / "nothing"):
        with pytest.raises(ArtefactError, match=r"(?s)cannot be read.*hint: give the folder that tapeout export wrote"):
            verify(folder)


def test_other_numbers_are_found(small: Path) -> None:
    """An artefact that computes something else than what was recorded, every hash in order."""
    wrong = {
        "reference": torch.tensor([[2.0, 3.5]] * 3, dtype=torch.float64),
        "artefact": torch.tensor([[2.0, 3.0]] * 3),
    }
    said = json.loads((small / CERTIFICATE).read_text())
    resealed(small, outputs=said["outputs"] | certificate._write_tensors(small / OUTPUTS, wrong))
    found = verify(small)
    assert (found.within, found.deviation.absolute, found.from_recorded.absolute) == (False, 0.5, 0.0)


def test_values_out_of_tolerance_are_not_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "fx", Backend("faulty"))
    monkeypatch.setattr(faulty, "WRONG", "twice")
    with pytest.raises(ArtefactError, match=r"(?s)off by 0\.03.*hint: tapeout compare --bisect"):
        export(twice(), {"x": torch.ones(3, 2)}, tmp_path / "small", "fx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("format", "options", "message"),
    [
        ("tflite", None, r"there is no format 'tflite'.*hint: there are onnx, pt2"),
        ("fx", {"opset": 17}, r"hint: "),
        ("onnx", {"opset": 5}, r"opset 5 cannot be written.*hint: use one from"),
        ("onnx", {"opset": 17}, r"opset 17 cannot express <.*hint: use opset 23 or newer, or attention_op=False"),
    ],
)
def test_what_cannot_be_expressed_is_said(
    tmp_path: Path, format: str, options: dict[str, Any] | None, message: str
) -> None:
    with pytest.raises(UnsupportedError, match=f"(?s){message}"):
        export(metric(), TOKENS, tmp_path / "new", format, options=options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", [each for each in WRONG_INPUTS if each not in ("one is missing", "one is unknown")])
@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_wrong_inputs_of_an_exported_artefact(exported: Exported, format: str, what: str) -> None:
    values, error = WRONG_INPUTS[what]
    with pytest.raises(error) as caught:
        load(exported(format))(**values)
    assert caught.value.hint
    with pytest.raises(error):
        export(metric(), values, exported.root / "never", format)
    assert not (exported.root / "never").exists()
