"""Circuits in files: what is saved loads as the identical circuit, what was altered is refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import tiny
import torch
from harness import symbol, tensor
from hypothesis import given, settings
from safetensors.torch import load_file

import tapeout
from tapeout.ir import Add, Array, Circuit, I, Index, Scalar, circuit_text, postorder, tensors_of
from tapeout.ir.errors import ArtefactError
from tapeout.ir.files import folders
from tapeout.ir.files import store as store_module
from tapeout.ir.nodes.functions import Elementwise
from tapeout.ir.nodes.general_function import GeneralFunction
from tapeout.models import circuit_of, split_circuit
from tapeout.testing import random_circuit
from tapeout.testing.cases import CASES
from tapeout.testing.strategies import SEEDS

FILES = ["circuit.txt", "arrays.safetensors", "manifest.json"]
NESTED = "module nested, with a constant and an outer symbol inside"


@pytest.fixture
def circuit() -> Circuit:
    return Index(
        Add(CASES[NESTED](torch.float32), Array(tensor(3, dtype=torch.float32), "it's\n")),
        I[torch.tensor([2, 0])],
    )


@pytest.fixture
def saved(circuit: Circuit, tmp_path: Path) -> Path:
    path = tmp_path / "some.circuit"
    circuit.save(path)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def assert_alone(path: Path) -> None:
    """Nothing temporary is left beside the saved circuit."""
    assert [item.name for item in path.parent.iterdir()] == [path.name]


# -- what is saved


def test_it_loads_as_the_identical_circuit(circuit: Circuit, saved: Path) -> None:
    assert Circuit.load(saved) is circuit
    assert Circuit.load(str(saved)) is circuit
    assert sorted(contents(saved)) == sorted(FILES)
    assert_alone(saved)


@given(SEEDS)
@settings(max_examples=25)
def test_random_circuits(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    made = random_circuit(Random(seed))
    path = tmp_path_factory.mktemp("random") / "c"
    made.save(path)
    assert Circuit.load(path) is made


@pytest.mark.parametrize("make", [tiny.gpt2, tiny.llama])
def test_a_model_before_and_after_the_passes(make: Callable[[int], Any], tmp_path: Path) -> None:
    circuits, info = circuit_of(make(11))
    for i, made in enumerate((circuits["t.bind_w"], split_circuit(circuits, info, 4)[0])):
        made.save(tmp_path / str(i))
        assert Circuit.load(tmp_path / str(i)) is made


def test_a_fresh_process_has_the_same_circuit_and_values(circuit: Circuit, saved: Path) -> None:
    code = (
        "import sys, tapeout; c = tapeout.Circuit.load(sys.argv[1]); "
        "sys.stdout.buffer.write(c.repr().encode() + b'\\n' + c.evaluate().numpy().tobytes().hex().encode())"
    )
    run = subprocess.run([sys.executable, "-c", code, str(saved)], capture_output=True, check=True)
    assert run.stdout.decode() == f"{circuit_text(circuit)}\n{circuit.evaluate().numpy().tobytes().hex()}"


def test_the_text_is_readable_and_tensors_are_stored_once(tmp_path: Path) -> None:
    whole = tensor(6, 4, dtype=torch.float32)
    parts = [
        Array(whole, "w"),
        Array(whole.T.contiguous().T, "again"),
        Array(whole[1:3], "slice"),
        Array(whole[:, 1], "column"),
    ]
    parts += [
        Array(torch.zeros(0, 5), "empty"),
        Array(torch.tensor(3), "number"),
        Array(torch.zeros(2, 2).expand(3, 2, 2), "view"),
    ]
    both = Add(*(part.sum() for part in parts if part.dtype == "float32"), name="both")
    path = tmp_path / "c"
    both.save(path)
    assert (path / "circuit.txt").read_text(encoding="utf-8") == circuit_text(both) + "\n"
    stored = load_file(path / "arrays.safetensors")
    assert stored.keys() == tensors_of(both).keys()
    assert len(stored) == 5
    loaded = Circuit.load(path)
    assert loaded is both


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int16, torch.uint8, torch.bool,
     torch.complex128, torch.float8_e4m3fn],
    ids=str,
)  # fmt: skip
def test_any_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    node = Array(torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype), "x")
    code = circuit_text(node)
    expected = node.value.clone()
    node.save(tmp_path / "c")
    loaded = Circuit.load(tmp_path / "c")
    assert loaded is node and circuit_text(loaded) == code
    del loaded, node
    again = Circuit.load(tmp_path / "c").cast_array().value  # built anew, from the file
    assert again.dtype is dtype and again.view(torch.uint8).equal(expected.view(torch.uint8))


def test_a_circuit_without_tensors(tmp_path: Path) -> None:
    node = Add(symbol(1, (2,), "x"), Scalar(1.0))
    node.save(tmp_path / "c")
    assert Circuit.load(tmp_path / "c") is node


def test_large_tensors_are_written_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_CHUNK", 7)
    nodes = [Array(value, f"n{i}") for i, value in enumerate((tensor(5, 4), tensor(4, 5).T, tensor(3, 2, 4)[:, 1]))]
    both = Add(*(node.sum() for node in nodes), name="s")
    both.save(tmp_path / "c")
    for digest, value in load_file(tmp_path / "c" / "arrays.safetensors").items():
        assert value.equal(tensors_of(both)[digest])


def test_saving_replaces_what_was_saved(circuit: Circuit, saved: Path) -> None:
    other = Scalar(2.0, (), "other")
    other.save(saved)
    assert Circuit.load(saved) is other
    assert_alone(saved)


def test_a_link_is_followed(circuit: Circuit, saved: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(saved)
    Scalar(2.0, (), "other").save(link)
    assert link.is_symlink() and Circuit.load(saved) is Circuit.load(link) is Scalar(2.0, (), "other")


def test_parents_are_made(tmp_path: Path) -> None:
    Scalar(1.0).save(tmp_path / "a" / "b")
    assert Circuit.load(tmp_path / "a" / "b") is Scalar(1.0)


# -- what is refused


def test_what_is_no_saved_circuit_is_not_replaced(circuit: Circuit, tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("mine")
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    (folder / "mine").write_text("mine")
    for path in (file, folder):
        with pytest.raises(ArtefactError, match="no saved circuit"):
            circuit.save(path)
    assert file.read_text() == (folder / "mine").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_function_without_a_text_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for name in ("mine", "sin"):  # sin, but not the known one
        own = GeneralFunction(Scalar(1.0, (2,), "x"), spec=Elementwise(name, torch.sinc), name="own")
        with pytest.raises(ArtefactError, match="does not read back"):
            own.save(tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_that_was_written_to_is_refused(tmp_path: Path) -> None:
    value = tensor(3)
    node = Array(value, "x")
    value[0] = 7
    with pytest.raises(tapeout.TapeoutError, match="written to"):
        node.save(tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FILES)
def test_every_altered_byte_is_found(name: str, saved: Path) -> None:
    good = (saved / name).read_bytes()
    places = range(len(good)) if len(good) < 400 else sorted(Random(0).sample(range(len(good)), 200))
    for at in places:
        (saved / name).write_bytes(good[:at] + bytes([good[at] ^ 0x11]) + good[at + 1 :])
        with pytest.raises(ArtefactError):
            Circuit.load(saved)
    (saved / name).write_bytes(good)
    Circuit.load(saved)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", ["truncated", "empty", "longer", "missing", "a folder"])
def test_a_damaged_file_is_found(name: str, change: str, saved: Path) -> None:
    path = saved / name
    good = path.read_bytes()
    path.unlink()
    if change == "a folder":
        path.mkdir()
    elif change != "missing":
        path.write_bytes({"truncated": good[:-9], "empty": b"", "longer": good + b" x"}[change])
    with pytest.raises(ArtefactError) as caught:
        Circuit.load(saved)
    assert str(path) in caught.value.message
    assert "copy the folder again" in caught.value.hint or "a saved circuit is a folder" in caught.value.hint


def reseal(folder: Path, **changes: Any) -> None:
    """A manifest that agrees with the files: what someone writes who alters a circuit on purpose."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest |= changes
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_tensors_are_checked_against_the_text_too(saved: Path) -> None:
    path = saved / "arrays.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    reseal(saved)
    with pytest.raises(ArtefactError, match="has the hash"):
        Circuit.load(saved)


@pytest.mark.parametrize("data", [b"", b"\xff" * 40, (5).to_bytes(8, "little") + b"hello"])
def test_what_is_no_safetensors_file_is_refused(saved: Path, data: bytes) -> None:
    (saved / "arrays.safetensors").write_bytes(data)
    reseal(saved)
    with pytest.raises(ArtefactError):
        Circuit.load(saved)


@pytest.mark.parametrize("data", [b"\xff\xfe", b"'x' [] Nonsense", b"", b"'x' [] Scalar 1\n'y' [] Scalar 1"])
def test_a_text_that_cannot_be_read_is_refused(saved: Path, data: bytes) -> None:
    (saved / "circuit.txt").write_bytes(data)
    reseal(saved)
    with pytest.raises(ArtefactError, match=r"circuit\.txt"):
        Circuit.load(saved)


def test_a_manifest_of_another_version_or_form_is_refused(saved: Path) -> None:
    for changes, words in (
        ({"format_version": 2}, "format version 2"),
        ({"format": "something"}, "altered"),
        ({"files": {}}, "altered"),
        ({"files": None}, "altered"),
    ):
        before = (saved / "manifest.json").read_bytes()
        reseal(saved, **changes)
        with pytest.raises(ArtefactError, match=words):
            Circuit.load(saved)
        (saved / "manifest.json").write_bytes(before)
    for text in ("[]", "null", "{", '{"format": "tapeout circuit"}', "[" * 100_000):
        (saved / "manifest.json").write_text(text)
        with pytest.raises(ArtefactError):
            Circuit.load(saved)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for name, words in (
        ("nothing", "is missing"),
        ("file", "is no folder"),
        ("folder", "manifest.json cannot be read"),
    ):
        with pytest.raises(ArtefactError, match=words):
            Circuit.load(tmp_path / name)


# -- interruptions


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, OSError(28, "No space left on device")], ids=["ctrl-c", "disk full"]
)
@pytest.mark.parametrize(("exists", "calls"), [(True, 0), (True, 1), (False, 0)])
def test_a_rename_that_fails_leaves_the_old_circuit(
    circuit: Circuit,
    saved: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    calls: int,
    exists: bool,
) -> None:
    """The first rename moves the old folder out of the way, the second the new one in."""
    path = saved if exists else saved.with_name("new")
    before, rename, left = contents(saved), Path.rename, [calls]

    def failing(self: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] == -1:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else ArtefactError):
        Scalar(2.0).save(path)
    monkeypatch.undo()
    assert contents(saved) == before
    assert Circuit.load(saved) is circuit
    assert_alone(saved)


@pytest.mark.parametrize("step", ["_write_tensors", "_fingerprint", "publish", "_pieces"])
def test_ctrl_c_while_writing_leaves_the_old_circuit(
    circuit: Circuit, saved: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    before = contents(saved)
    monkeypatch.setattr(folders if step == "publish" else store_module, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        Array(tensor(2), "x").save(saved)
    monkeypatch.undo()
    assert contents(saved) == before
    assert_alone(saved)


def test_a_process_killed_between_the_renames_loses_nothing(circuit: Circuit, saved: Path) -> None:
    saved.rename(saved.with_name(".some.circuit.previous"))
    assert Circuit.load(saved) is circuit
    Scalar(2.0).save(saved)
    assert Circuit.load(saved) is Scalar(2.0)
    assert_alone(saved)


def test_a_folder_that_cannot_be_written_is_said(circuit: Circuit, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtefactError, match="cannot be written"):
        circuit.save(tmp_path / "file" / "below")


def test_every_node_of_a_loaded_circuit_is_on_the_cpu(saved: Path) -> None:
    arrays = [node for node in postorder(Circuit.load(saved)) if isinstance(node, Array)]
    assert arrays and all(node.value.device.type == "cpu" for node in arrays)
