"""The benchmark on a tiny model: every way gives the reference's numbers, and what cannot run is said."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from harness import integers
from random_models import gpt2
from splits import by_head_and_position, difference

from tapeout.ir.errors import TapeoutError, UnsupportedError
from tapeout.tasks.ioi import exported
from tapeout.tasks.ioi.bench import run_bench
from tapeout.tasks.ioi.setting import Setting


def setting() -> Setting:
    model = gpt2()
    metric = difference(by_head_and_position(model, 5))
    return Setting("tiny", model, metric, integers(4, 5, below=11), integers(4, 2, below=11, seed=1))


def test_every_way_gives_the_numbers_of_the_reference_and_what_cannot_run_is_said() -> None:
    said: list[str] = []
    result = run_bench(setting(), ["fx", "onnx"], ["float32", "bfloat16"], 1, said.append)
    names = [way.name for way in result.ways if way.name != "torch.onnx.export, last logits"]
    assert names == [
        "Hugging Face, all logits",
        "Hugging Face, last logits",
        "fx float32",
        "fx bfloat16",
        "onnx float32",
        "fx float32, prompts bound",
        "onnx float32, prompts bound",
    ]
    assert all(way.max_abs_error < (1e-4 if "bfloat16" not in way.name else 1.0) for way in result.ways)
    (left,) = [line for line in said if line.startswith("left out: onnx bfloat16")]
    assert "float32" in left


@pytest.mark.parametrize(
    ("ways", "hint"), [(("foo", "float32"), "there are fx, torchscript"), (("fx", "float16"), "use float32, float64")]
)
def test_names_that_are_none_are_no_ways_to_be_left_out(ways: tuple[str, str], hint: str) -> None:
    said: list[str] = []
    with pytest.raises(TapeoutError) as caught:
        run_bench(setting(), [ways[0]], [ways[1]], 1, said.append)
    assert hint in caught.value.hint and not said


def test_without_what_torch_exports_with_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str, *_: Any) -> None:
        return None

    monkeypatch.setattr(exported, "find_spec", absent)
    with pytest.raises(UnsupportedError, match="onnxscript") as caught:
        exported.exported_logit_diff(setting())
    assert "pip install" in caught.value.hint


@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="onnxscript is not installed")
def test_the_exported_model_gives_the_same_numbers() -> None:
    result = run_bench(setting(), ["onnx"], ["float32"], 1)
    (way,) = [way for way in result.ways if way.name == "torch.onnx.export, last logits"]
    assert way.max_abs_error < 1e-4
