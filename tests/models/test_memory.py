"""No weight is ever copied: by its address in memory, and by what the process needs at its peak."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle_walk import TAPEOUT, walk
from random_models import bound_circuit, fresh, gpt2, llama
from transformers import GPT2Config, GPT2LMHeadModel

import tapeout as rc
from tapeout import Array, Circuit, postorder
from tapeout.models import circuit_of

OWN_CONSTANTS = {"t.a.c.causal_mask", "t.a.c.cos", "t.a.c.sin"}
"""What `bind_to_input` makes: small, and no weights."""


def storages(model: Any) -> set[int]:
    return {weight.untyped_storage().data_ptr() for weight in model.state_dict().values()}


def copies(circuit: Circuit, model: Any) -> set[str]:
    """The names of arrays that do not lie in the memory of the model."""
    theirs = storages(model)
    arrays = [node for node in postorder(circuit) if isinstance(node, Array)]
    assert len(arrays) > 10
    return {a.name for a in arrays if a.value.untyped_storage().data_ptr() not in theirs}


@pytest.mark.parametrize("make", [gpt2, llama, partial(gpt2, tie_word_embeddings=False)])
def test_every_array_is_a_view_of_a_weight(make: Callable[[], Any]) -> None:
    model = fresh(make())
    circuits, _ = circuit_of(model)
    for name in circuits:
        (array, *_) = circuits[name].get(Array)
        assert array.value.untyped_storage().data_ptr() in storages(model)
    assert copies(circuits["t.bind_w"], model) == set()
    heads = getattr(model.config, "n_head", None) or model.config.num_attention_heads
    steps = walk.table_walk(TAPEOUT, bound_circuit(model, 5), walk.Sizes(2, heads, 5))
    for step, circuit in steps:
        assert copies(circuit, model) <= OWN_CONSTANTS, step


def test_a_copy_would_be_noticed() -> None:
    model = gpt2()
    circuit, _ = circuit_of(model)
    copied = circuit["t.bind_w"].update("m0.w.proj_in_arr", lambda a: Array(a.cast_array().value.clone(), "copy"))
    other = gpt2(seed=1)
    assert copies(copied, other) >= {"copy", "a0.w.q_arr"}


def test_equal_weights_are_one_array_in_the_models_memory() -> None:
    """Equal biases of many layers: the same content, which is not gathered anywhere."""
    model = fresh(gpt2(n_layer=3))
    first, *others = (layer.mlp.c_proj.bias for layer in model.transformer.h)
    with torch.no_grad():
        for bias in others:
            bias.copy_(first)
    circuits, _ = circuit_of(model)
    assert copies(circuits["t.bind_w"], model) == set()
    biases = [node.cast_array() for node in circuits["t.bind_w"].get(rc.Regex(r"^m\d.w.out_bias_arr$"))]
    assert len(biases) == 3
    assert len({bias.tensor_hash for bias in biases}) == 1


MEASURE = """
import json, sys
import torch
import tapeout as rc
from transformers import GPT2Config, GPT2LMHeadModel
from tapeout.models import circuit_of, load_circuit
from tapeout.passes import To, configure_transformer

def peak():
    with open("/proc/self/status") as status:  # getrusage would count the parent at the fork
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

def walk(circuits, info):
    tokens = rc.Symbol.new_with_random_uuid((16,), name="tokens")
    embeds = rc.GeneralFunction.gen_index(circuits["t.w.tok_embeds"], tokens, 0)
    bound = info.bind_to_input(circuits["t.bind_w"], embeds, circuits["t.w.pos_embeds"])
    options = {"split_by_head_config": "full", "use_pull_up_head_split": True, "use_flatten_res": True}
    split = bound.update("t.bind_w", lambda c: configure_transformer(c, To.ATTN_HEAD_MLP_NORM, **options))
    return rc.substitute_all_modules(rc.conform_all_modules(split))

config = GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=11, bos_token_id=0, eos_token_id=0)
walk(*circuit_of(GPT2LMHeadModel(config)))
before = peak()
circuits, _, info = load_circuit(sys.argv[1])
split = walk(circuits, info)
weights = {node.value.untyped_storage().data_ptr(): node.value.untyped_storage().nbytes()
           for node in circuits["t.bind_w"].nodes}
after = peak()
copied = [node.value.clone() for node in circuits["t.bind_w"].nodes]
print(json.dumps({"weights": sum(weights.values()), "grown": after - before, "with_copies": peak() - before}))
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Iterator[Path]:
    """GPT-2 small in a directory: 500 MB of weights of which no page is empty."""
    config = GPT2Config(bos_token_id=0, eos_token_id=0)
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
    model.to_empty(device="cpu").tie_weights()
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(i))
    model.save_pretrained(tmp_path)
    yield tmp_path
    shutil.rmtree(tmp_path)  # pytest would keep it for three runs


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's account of memory")
def test_loading_and_splitting_needs_the_weights_once(checkpoint: Path) -> None:
    """Within 1.3 times the weights beyond what the interpreter, torch and a tiny model need."""
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(checkpoint)], capture_output=True, text=True, check=True
    )
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["weights"] > 450e6
    assert found["grown"] < 1.3 * found["weights"]
    assert found["grown"] > 0.5 * found["weights"]  # the weights were really read
    assert found["with_copies"] > 1.5 * found["weights"]  # what a copy would have shown
