"""Sweeps beside TransformerLens's patching loops, where it is installed (`pip install tapeout[bench]`)."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from splits import by_head_and_position, difference

from tapeout.tasks.patching import Variants, heads, heads_by_position, mlps, residual_streams, sweep

pytest.importorskip("transformer_lens", reason="TransformerLens is not installed: pip install tapeout[bench]")

LENGTH, VOCABULARY = 5, 11
BASELINE = {
    "tokens": torch.randint(VOCABULARY, (3, LENGTH), generator=torch.Generator().manual_seed(0)),
    "labels": torch.tensor([[1, 2], [3, 4], [5, 6]]),
}
PATCH = {"tokens": torch.randint(VOCABULARY, (3, LENGTH), generator=torch.Generator().manual_seed(1))}


@pytest.fixture(scope="module")
def both() -> tuple[Any, Any]:
    """The metric, and TransformerLens's model of the same weights, unprocessed."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformer_lens import TransformerBridge
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<s>": 0}, unk_token="<s>"))  # it wants a tokenizer, which nothing uses
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<s>", pad_token="<s>")
    model = tiny.gpt2(VOCABULARY)
    metric = difference(by_head_and_position(model, LENGTH))
    bridge = TransformerBridge.boot_transformers("gpt2", hf_model=deepcopy(model), tokenizer=tokenizer)
    bridge.enable_compatibility_mode(disable_warnings=True, no_processing=True)
    return metric, bridge.eval()


def logit_diff(logits: torch.Tensor) -> torch.Tensor:
    io, s = logits[:, -1].gather(1, BASELINE["labels"]).unbind(1)
    return (io - s).mean()


CASES: dict[str, tuple[str, Callable[[Any], Variants]]] = {
    "heads": ("get_act_patch_attn_head_out_all_pos", heads),
    "queries": ("get_act_patch_attn_head_q_all_pos", lambda metric: heads(metric, "q")),
    "keys": ("get_act_patch_attn_head_k_all_pos", lambda metric: heads(metric, "k")),
    "values": ("get_act_patch_attn_head_v_all_pos", lambda metric: heads(metric, "v")),
    "patterns": ("get_act_patch_attn_head_pattern_all_pos", lambda metric: heads(metric, "pattern")),
    "heads by position": ("get_act_patch_attn_head_out_by_pos", heads_by_position),
    "MLPs by position": ("get_act_patch_mlp_out", lambda metric: mlps(metric, by_position=True)),
    "streams by position": ("get_act_patch_resid_pre", lambda metric: residual_streams(metric, by_position=True)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_sweep_is_the_loop(both: tuple[Any, Any], case: str) -> None:
    from transformer_lens import patching

    metric, model = both
    name, variants = CASES[case]
    with torch.inference_mode():
        _, cache = model.run_with_cache(PATCH["tokens"])
        expected = getattr(patching, name)(model, BASELINE["tokens"], cache, logit_diff).numpy()
    result = sweep(metric, variants(metric), BASELINE, PATCH).mean()
    found = result.to_numpy()
    if case == "streams by position":
        found = found[[str(label).startswith("a") for label in result.values["layer"].values]]
    if case == "heads by position":
        found = found.transpose(0, 2, 1)  # theirs is [layer, position, head]
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-4
    assert np.abs(found - float(result.baseline)).max() > 1e-3
