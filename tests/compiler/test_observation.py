"""TAPEOUT_DEBUG, TAPEOUT_DUMP and TAPEOUT_SKIP; what an error in a pass says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from harness import integers, symbol, tensor
from random_models import gpt2, llama
from splits import by_head_and_position, difference
from tolerances import assert_close

from tapeout.compiler import Compiled, compile
from tapeout.compiler.config import Config, from_environment
from tapeout.compiler.optimise import AFTER_BATCH, BEFORE_BATCH
from tapeout.ir import Add, Array, Circuit, circuit_text
from tapeout.ir.errors import LoweringError, PassError, UnsupportedError
from tapeout.passes.execution import Origins, Roots
from tapeout.passes.kernels import Kernels
from tapeout.passes.reroll import Reroll
from tapeout.passes.rules import RULES

SKIPPABLE = sorted({each.name for each in (*BEFORE_BATCH, *AFTER_BATCH)} | {"order"})
ORDER = ["inline", *(each.name for each in BEFORE_BATCH), "add_batch", *(each.name for each in AFTER_BATCH), "order"]


def small() -> Circuit:
    return Add(symbol(1, (3,), "x"), Array(tensor(3), "k"), name="total")


def compiled_small() -> Compiled:
    return compile(small(), inputs=["x"], dtype="float64")


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> tuple[Circuit, torch.Tensor]:
    """A model's logit difference, and its value on some rows."""
    circuit = difference(by_head_and_position({"gpt2": gpt2, "llama": llama}[request.param](), 5))
    return circuit, run(circuit)


def run(circuit: Circuit) -> torch.Tensor:
    compiled = compile(circuit, inputs=["tokens", "labels"], dtype="float64")
    found: torch.Tensor = compiled(tokens=integers(3, 5, below=11), labels=integers(3, 2, below=11))
    return found


# -- leaving passes out


@pytest.mark.parametrize("name", SKIPPABLE)
def test_each_pass_can_be_left_out_and_the_value_stays(
    model: tuple[Circuit, torch.Tensor], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAPEOUT_SKIP", name)
    assert_close(run(model[0]), model[1])
    assert name not in [record.name for record in compiled_small().passes]


def test_several_passes_can_be_left_out(model: tuple[Circuit, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAPEOUT_SKIP", ", ".join(SKIPPABLE))
    assert_close(run(model[0]), model[1])
    assert [record.name for record in compiled_small().passes] == ["inline", "add_batch"]


@pytest.mark.parametrize("name", ["rerol", "inline", "add_batch"])
def test_what_cannot_be_left_out_is_said(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAPEOUT_SKIP", name)
    with pytest.raises(PassError, match=name) as caught:
        compiled_small()
    assert "reroll" in str(caught.value)


# -- what is said and written


def test_nothing_is_said_without_being_asked(capsys: pytest.CaptureFixture[str]) -> None:
    compiled_small()
    assert capsys.readouterr() == ("", "")


def test_passes_and_times(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TAPEOUT_DEBUG", "passes")
    compiled_small()
    out, err = capsys.readouterr()
    assert out == "" and [line.split(":")[0] for line in err.splitlines()] == ORDER
    assert "3 -> 3 nodes" in err and " s" not in err
    monkeypatch.setenv("TAPEOUT_DEBUG", "time")
    compiled_small()
    assert all(line.endswith(" s") for line in capsys.readouterr().err.splitlines())


def test_rules(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TAPEOUT_DEBUG", "rules")
    compile(Add(small(), name="outer"), inputs=["x"], dtype="float64")
    assert "add_of_one: 1 times" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["circuit of one row", "values"])
def test_verify(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that changes a value is found by name; those that keep it pass."""
    monkeypatch.setenv("TAPEOUT_DEBUG", "verify")
    compiled_small()

    def broken(self: object, roots: Roots, origins: Origins) -> Roots:
        return tuple(Add(root, Array(torch.ones(3, dtype=torch.float64)), name=None) for root in roots)

    wrong = Reroll if part == "circuit of one row" else Kernels
    monkeypatch.setattr(wrong, "run_many", broken)
    with pytest.raises(PassError, match=f"{wrong.name}.*changed the value") as caught:
        compiled_small()
    assert f"TAPEOUT_SKIP={wrong.name}" in str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_verify_on_a_model(model: tuple[Circuit, torch.Tensor], dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAPEOUT_DEBUG", "verify")
    compile(model[0], inputs=["tokens", "labels"], dtype=dtype)
    bound = model[0].update("tokens", lambda _: Array(integers(5, below=11), "tokens"))
    compile(bound, dtype=dtype)


def test_dumps_are_numbered_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "new" / "dump"
    monkeypatch.setenv("TAPEOUT_DUMP", str(folder))
    compiled = compiled_small()
    files = sorted(folder.iterdir())
    assert [file.stem for file in files] == [f"{i:02d}_{name}" for i, name in enumerate(ORDER)]
    assert files[-1].read_text(encoding="utf-8") == circuit_text(*compiled.roots) + "\n"


def test_unknown_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAPEOUT_DEBUG", "passes, loud")
    with pytest.raises(PassError, match="loud"):
        compiled_small()


def test_settings_are_read_at_each_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    assert from_environment() == Config()
    monkeypatch.setenv("TAPEOUT_DEBUG", " passes ,, time ")
    monkeypatch.setenv("TAPEOUT_DUMP", "")
    monkeypatch.setenv("TAPEOUT_SKIP", "reroll")
    assert from_environment() == Config(frozenset(("passes", "time")), None, frozenset(("reroll",)))


# -- errors


def test_an_error_in_a_pass_names_it_and_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: object, roots: Roots, origins: Origins) -> Roots:
        raise PassError("it broke", hint="mend it")

    monkeypatch.setattr(Reroll, "run_many", fails)
    with pytest.raises(PassError, match="it broke") as caught:
        compiled_small()
    (note,) = caught.value.__notes__
    before = ORDER[: ORDER.index("reroll")]
    assert "reroll" in note and ", ".join(before) in note


def test_an_error_at_a_node_shows_the_circuit_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors of every kind: in a rule of the simplifier, in a rewrite, in lowering."""

    def fails(*_: object) -> None:
        raise KeyError("no such thing")

    monkeypatch.setattr("tapeout.passes.kernels.PATTERNS", (fails,))
    with pytest.raises(KeyError) as caught:
        compiled_small()
    around, where = caught.value.__notes__
    assert "around the node" in around and "Symbol" in around
    assert "kernels" in where and "reroll" in where
    monkeypatch.undo()
    monkeypatch.setitem(RULES, Add, (fails,))
    with pytest.raises(KeyError) as caught:
        compiled_small()
    assert "Add" in caught.value.__notes__[0] and "simplify" in caught.value.__notes__[1]


def test_an_error_in_lowering_names_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    from tapeout.backends.fx import lower as lowering

    def fails(*_: object) -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setitem(lowering.__globals__["RULES"], Add, fails)
    with pytest.raises(LoweringError, match="total") as caught:
        compiled_small()
    assert any("Add" in fact for fact in caught.value.facts)
    assert ", ".join(ORDER) in caught.value.__notes__[-1]
    monkeypatch.delitem(lowering.__globals__["RULES"], Add)
    with pytest.raises(UnsupportedError, match="Add"):
        compiled_small()


def test_records_say_what_each_pass_did() -> None:
    compiled = compile(Add(small(), name="outer"), inputs=["x"], dtype="float64")
    assert [record.name for record in compiled.passes] == ORDER
    changed = {record.name for record in compiled.passes if record.changed}
    assert {"inline", "simplify", "add_batch"} <= changed and "reroll" not in changed
