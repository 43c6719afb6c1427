"""`tapeout show`: what it prints of a saved circuit, and its errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from harness import symbol

from tapeout.cli import main
from tapeout.compiler import compile
from tapeout.ir import Add, Circuit, Scalar, parse_circuit, tensors_of
from tapeout.testing.cases import CASES

NESTED = "module nested, with a constant and an outer symbol inside"
Show = Callable[..., tuple[int, str, str]]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "nested.circuit"
    CASES[NESTED](torch.float32).save(path)
    return path


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Show:
    """Runs the command: its exit status, what it printed, its errors."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["tapeout", "show", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr()
        return int(caught.value.code or 0), printed.out, printed.err

    return run


def test_everything_is_printed_as_it_reads_back(show: Show, saved: Path) -> None:
    status, out, err = show(saved, "--depth", -1)
    circuit = CASES[NESTED](torch.float32)
    text, _, summary = out.partition("\n\n")
    assert (status, err) == (0, "")
    assert parse_circuit(text, tensors_of(circuit)) is circuit
    assert summary == (
        "10 nodes: 2 Symbol, 2 Array, 2 Einsum, 2 Module, 1 Add, 1 Scalar\n0.0 MB of constants in 2 tensors\n"
    )


def test_of_an_artefact_the_optimised_circuit_is_shown(show: Show, tmp_path: Path) -> None:
    rows = symbol(1, (3,), "rows")
    compile(Add(rows, Scalar(1.0), name="more"), inputs=["rows"]).save(tmp_path / "artefact")
    status, out, err = show(tmp_path / "artefact")
    assert (status, err) == (0, "") and out.startswith("0 [BATCH,3] Add\n  'rows'")


def test_depth_and_types(show: Show, saved: Path) -> None:
    _, out, _ = show(saved, "--depth", 1, "--types")
    assert [line.split(" Array ")[0] for line in out.split("\n")[:3]] == [
        "'call' [4,3] Module # float32",
        "  'outer body' [3] Einsum a,a->a ... # float32",
        "  'o' [4,3]",
    ]
    assert out.split("\n")[2].endswith("float32 ! 'outer' # float32")
    assert show(saved, "--depth", 0)[1].startswith("'call' [4,3] Module ...\n\n10 nodes: ")


def test_a_few_levels_are_printed_unless_asked(show: Show, saved: Path) -> None:
    assert show(saved)[1] == show(saved, "--depth", 3)[1] != show(saved, "--depth", 4)[1]


def test_names_choose_what_is_printed(show: Show, saved: Path) -> None:
    _, out, _ = show(saved, "--names", "^inner b|double", "--depth", 0)
    assert out.startswith("'double' [3] Einsum a,->a ...\n'inner body' [3] Add ...\n\n10 nodes")


def test_free_symbols_are_listed(show: Show, tmp_path: Path) -> None:
    Add(symbol(1, (None, 3), "x"), Scalar(1.0)).save(tmp_path / "c")
    _, out, _ = show(tmp_path / "c", "--types")
    assert "# undetermined" in out and out.endswith("free symbols: 'x' [?, 3]\n")


def test_errors(show: Show, saved: Path) -> None:
    with (saved / "circuit.txt").open("a") as file:
        file.write(" ")
    for words, message in (
        ((saved,), "was altered or truncated"),
        ((saved / "no",), "is missing"),
        ((saved / "circuit.txt",), "is no folder"),
    ):
        status, out, err = show(*words)
        assert (status, out) == (2, "") and message in err and "hint: " in err


@pytest.mark.parametrize(("pattern", "message"), [("nowhere", "no node of"), ("[", "not a regular expression")])
def test_names_that_find_nothing(show: Show, saved: Path, pattern: str, message: str) -> None:
    status, out, err = show(saved, "--names", pattern)
    assert (status, out) == (2, "") and message in err and "hint: " in err


def test_ctrl_c(show: Show, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> Circuit:
        raise KeyboardInterrupt

    monkeypatch.setattr(Circuit, "load", interrupted)
    assert show(saved)[0] == 130
