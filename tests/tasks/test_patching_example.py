"""The example runs on tiny models, and what it prints is what single edits give."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from tapeout.models import load_circuit, split_circuit
from tapeout.tasks.ioi import IOIDataset
from tapeout.tasks.ioi.circuit import logit_diff_circuit
from tapeout.tasks.patching import END, path_patch

EXAMPLE = Path(__file__).parents[2] / "examples" / "ioi_patching.py"


@pytest.mark.parametrize("family", [tiny.gpt2, tiny.llama])
def test_example(family: Callable[[int], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("ioi_patching", EXAMPLE)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    tokenizer = tiny.word_tokenizer()
    tiny.save(family(len(tokenizer)), tmp_path, tokenizer)
    steps = example.main(str(tmp_path), 6)

    circuits, _, info = load_circuit(str(tmp_path))
    dataset = IOIDataset("mixed", 6, tokenizer=tokenizer)
    metric = logit_diff_circuit(split_circuit(circuits, info, dataset.max_len)[0])
    other = dataset.gen_flipped_prompts("IO")
    plain = path_patch(metric, "m1", dataset, dataset).evaluate("float64").mean()
    for head, effect in steps["movers"].items():
        patched = path_patch(metric, f"{head} -> final.input", dataset, other, t=END).evaluate("float64").mean()
        assert abs(float(patched - plain) - effect) < 1e-4
    first = next(iter(steps["movers"]))
    assert abs(steps["checks"]["alone"] - steps["movers"][first]) < 1e-4
    assert f"{first} -> final.input as a circuit of its own" in capsys.readouterr().out
