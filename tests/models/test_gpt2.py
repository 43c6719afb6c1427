"""GPT-2: the same logits as Hugging Face's, whole and split; which configurations and weights are refused."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from oracle_walk import RUST, TAPEOUT, evaluate_rust, needs_oracle, walk
from random_models import attention_entropy, bound_circuit, evaluate, gpt2, logits, tokens_for

import tapeout as rc
from tapeout import ModelError, ShapeError
from tapeout.models import circuit_of, load_circuit, load_gpt2_small_circuit

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "two heads": {},
    "one head, one layer": {"n_head": 1, "n_layer": 1},
    "narrow MLP": {"n_head": 4, "n_inner": 3},
    "MLP of the default width": {"n_inner": None, "n_layer": 3, "n_embd": 12, "n_head": 3},
    "own unembedding": {"tie_word_embeddings": False},
    "large epsilon": {"layer_norm_epsilon": 0.1},
    "gelu": {"activation_function": "gelu"},
    "tanh form by its other name": {"activation_function": "gelu_pytorch_tanh"},
    "relu": {"activation_function": "relu"},
    "silu": {"activation_function": "silu"},
}
LENGTH = 7


def split(model: Any, length: int, **options: Any) -> rc.Circuit:
    """The model's circuit after the seed's whole walk: by head and by position."""
    sizes = walk.Sizes(model.config.n_layer, model.config.n_head, length)
    *_, (_, circuit) = walk.table_walk(TAPEOUT, bound_circuit(model, length, **options), sizes)
    return circuit


def largest_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).abs().max())


# -- parity


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_every_logit_of_the_split_circuit_is_hugging_faces(configuration: str) -> None:
    model = gpt2(**CONFIGURATIONS[configuration])
    tokens = tokens_for(model, 4, LENGTH)
    expected, exact = logits(model, tokens), logits(copy.deepcopy(model).double(), tokens)
    assert 1 < exact.std() < 10
    circuit = split(model, LENGTH)
    assert circuit.are_any_found("a0_h0_t6")
    assert largest_error(evaluate(circuit, tokens), expected) < 1e-4
    assert largest_error(evaluate(circuit, tokens, "float64"), exact) < 1e-9


@pytest.fixture(scope="module")
def small() -> Any:
    """GPT-2 small's size, its vocabulary apart."""
    return gpt2(n_layer=12, n_head=12, n_embd=768, n_inner=None, vocab_size=5000)


@pytest.fixture(scope="module")
def small_tokens(small: Any) -> torch.Tensor:
    return tokens_for(small, 2, 16)


@pytest.fixture(scope="module")
def small_logits(small: Any, small_tokens: torch.Tensor) -> torch.Tensor:
    return logits(small, small_tokens)


def test_gpt2_small_split_by_head_and_position(
    small: Any, small_tokens: torch.Tensor, small_logits: torch.Tensor
) -> None:
    circuit = split(small, 16)
    assert len(circuit.get(rc.Regex(r"^a\d+_h\d+_t\d+$"))) == 12 * 12 * 16
    assert largest_error(evaluate(circuit, small_tokens), small_logits) < 1e-4
    exact = logits(copy.deepcopy(small).double(), small_tokens)
    assert 1 < exact.std() < 10
    assert largest_error(evaluate(circuit, small_tokens, "float64"), exact) < 1e-9


@needs_oracle
def test_gpt2_small_in_rust_circuit(small: Any, small_tokens: torch.Tensor, small_logits: torch.Tensor) -> None:
    circuits, info = circuit_of(small)
    theirs = evaluate_rust(walk.bind_rust(RUST, circuits, info, 16, "gelu_new"), small_tokens)
    ours = evaluate(bound_circuit(small, 16), small_tokens)
    assert largest_error(theirs, small_logits) < 1e-4
    assert largest_error(theirs, ours) < 1e-4


# -- the comparison can fail


def test_attention_chooses(small: Any, small_tokens: torch.Tensor) -> None:
    assert attention_entropy(small, small_tokens) < 0.8
    tiny = gpt2()
    assert attention_entropy(tiny, tokens_for(tiny, 4, LENGTH)) < 0.8


@pytest.mark.parametrize("large", [False, True])
def test_the_other_gelu_would_be_noticed(large: bool, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue("small") if large else gpt2()
    tokens = tokens_for(model, 2, 16)
    other = evaluate(bound_circuit(model, 16, activation="gelu"), tokens)
    assert largest_error(other, logits(model, tokens)) > 1e-3


@pytest.mark.parametrize("large", [False, True])
def test_swapped_query_and_key_biases_would_be_noticed(large: bool, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue("small") if large else gpt2()
    tokens = tokens_for(model, 2, 16)
    swapped = dict(model.state_dict())
    for name, bias in swapped.items():
        if name.endswith("c_attn.bias"):
            q, k, v = bias.chunk(3)
            swapped[name] = torch.cat((k, q, v))
    other = SimpleNamespace(config=model.config, state_dict=lambda: swapped)
    assert largest_error(evaluate(bound_circuit(other, 16), tokens), logits(model, tokens)) > 0.1


# -- options and forms of a model


def test_another_activation_than_the_configurations() -> None:
    model = gpt2(activation_function="gelu")
    tokens = tokens_for(model, 2, LENGTH)
    model.config.activation_function = "gelu_new"
    circuit = bound_circuit(model, LENGTH, activation="gelu")
    assert largest_error(evaluate(circuit, tokens), logits(model, tokens)) < 1e-5
    circuits, _, _ = load_circuit(model, activation="gelu")
    assert circuits["t.bind_w"] is circuit_of(model, activation="gelu")[0]["t.bind_w"]


def test_a_model_without_its_head() -> None:
    model = gpt2()
    circuits, _ = circuit_of(model.transformer)
    assert circuits["t.bind_w"] is circuit_of(model)[0]["t.bind_w"]


def test_a_float64_model_is_a_float64_circuit() -> None:
    model = gpt2().double()
    tokens = tokens_for(model, 3, LENGTH)
    circuit = bound_circuit(model, LENGTH)
    assert circuit.dtype == "float64"
    assert largest_error(evaluate(circuit, tokens), logits(model, tokens)) < 1e-12


def test_a_bfloat16_model_evaluated_in_float64() -> None:
    model = gpt2().to(torch.bfloat16)
    tokens = tokens_for(model, 3, LENGTH)
    circuit = bound_circuit(model, LENGTH)
    assert circuit.dtype == "bfloat16"
    exact = logits(model.double(), tokens)
    assert largest_error(evaluate(circuit, tokens, "float64"), exact) < 1e-9


def test_load_circuit_returns_what_the_seed_expects() -> None:
    model = gpt2()
    for load in (load_circuit, load_gpt2_small_circuit):
        circuits, tokenizer, info = load(model)
        assert set(circuits) == {"t.bind_w", "t.w.tok_embeds", "t.w.pos_embeds"}
        assert isinstance(circuits["t.bind_w"], rc.Module)
        assert {symbol.name for symbol in circuits["t.bind_w"].free_symbols} == {"t.input", "a.mask"}
        assert tokenizer is None
        assert info.family == "gpt2"
        assert info.params.num_layers == 2
        assert info.params.num_heads == info.params.num_kv_heads == 2
        assert info.params.head_size == 4


# -- binding to an input


def test_bind_to_input_tokens() -> None:
    model = gpt2()
    circuits, info = circuit_of(model)
    tokens = tokens_for(model, 3, LENGTH)
    symbol = rc.Symbol.new_with_random_uuid((LENGTH,), name="tokens")
    tables = circuits["t.w.tok_embeds"], circuits["t.w.pos_embeds"]
    bound = info.bind_to_input_tokens(circuits["t.bind_w"], symbol, *tables)
    assert bound.name == "t.call"
    assert largest_error(evaluate(bound, tokens), logits(model, tokens)) < 1e-5


def test_keys_that_are_masked_are_not_attended_to() -> None:
    model = gpt2()
    circuits, info = circuit_of(model)
    tokens = tokens_for(model, 1, LENGTH)
    keep = torch.tensor([1, 1, 0, 1, 0, 1, 1])
    with torch.no_grad():
        expected = model(tokens, attention_mask=keep[None], position_ids=torch.arange(LENGTH)[None]).logits
    embeds = rc.GeneralFunction.gen_index(circuits["t.w.tok_embeds"], rc.Array(tokens[0]), 0)
    bound = info.bind_to_input(
        circuits["t.bind_w"], embeds, circuits["t.w.pos_embeds"], rc.Array(keep.float(), "keep"), prefix="u"
    )
    assert bound.name == "u.call"
    assert {"u.a.mask", "u.inp_tok_pos"} <= {node.name for node in bound.get(True)}
    seen = keep.bool()  # what a masked position itself would say is nobody's concern
    assert largest_error(bound.evaluate()[seen], expected[0][seen]) < 1e-5
    unmasked = info.bind_to_input(circuits["t.bind_w"], embeds, circuits["t.w.pos_embeds"]).evaluate()
    assert largest_error(unmasked[seen], expected[0][seen]) > 0.1


def test_a_sequence_longer_than_the_model_knows_positions_for() -> None:
    with pytest.raises(ModelError, match=r"21 tokens are more than the 20 positions") as caught:
        bound_circuit(gpt2(), 21)
    assert caught.value.hint


def test_learnt_positions_must_be_given() -> None:
    circuits, info = circuit_of(gpt2())
    embeds = rc.Array(torch.zeros(3, 8), "embeds")
    with pytest.raises(ModelError, match="learnt positions") as caught:
        info.bind_to_input(circuits["t.bind_w"], embeds)
    assert "t.w.pos_embeds" in caught.value.hint


def test_the_number_of_tokens_must_be_known() -> None:
    circuits, info = circuit_of(gpt2())
    embeds = rc.Symbol.new_with_random_uuid((rc.dim("N"), 8), name="embeds")
    with pytest.raises(ShapeError, match=r"embeds.*symbolic size N"):
        info.bind_to_input(circuits["t.bind_w"], embeds, circuits["t.w.pos_embeds"])


# -- what is refused


@pytest.mark.parametrize(
    "field",
    [
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False},
        {"add_cross_attention": True},
        {"activation_function": "tanh"},
        {"something_of_next_year": 3},
    ],
    ids=lambda field: next(iter(field)),
)
def test_a_configuration_that_is_not_understood(field: dict[str, Any]) -> None:
    (name, value), model = *field.items(), gpt2()
    setattr(model.config, name, value)
    with pytest.raises(ModelError) as caught:
        circuit_of(model)
    assert (repr(value) if name == "activation_function" else name) in caught.value.message
    assert caught.value.hint


def test_an_activation_that_is_not_known() -> None:
    with pytest.raises(ModelError, match="'swish'") as caught:
        circuit_of(gpt2(), activation="swish")
    assert "gelu_new" in caught.value.hint


def test_an_architecture_that_is_not_supported() -> None:
    model = SimpleNamespace(config=SimpleNamespace(model_type="mamba"))
    with pytest.raises(ModelError, match="'mamba'") as caught:
        circuit_of(model)
    assert "gpt2, llama" in caught.value.hint


def with_weights(model: Any, weights: dict[str, torch.Tensor]) -> Any:
    return SimpleNamespace(config=model.config, state_dict=lambda: weights)


WEIGHTS = list(gpt2(n_layer=1).state_dict())


@pytest.mark.parametrize("name", [name for name in WEIGHTS if name != "lm_head.weight"])
def test_a_missing_weight(name: str) -> None:
    model = gpt2(n_layer=1)
    weights = {key: value for key, value in model.state_dict().items() if key != name}
    with pytest.raises(ModelError, match="lacks the weight") as caught:
        circuit_of(with_weights(model, weights))
    assert name in caught.value.message


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_of_another_shape(name: str) -> None:
    model = gpt2(n_layer=1)
    weights = dict(model.state_dict())
    weights[name] = torch.zeros(*weights[name].shape[:-1], 5)
    with pytest.raises(ModelError, match=r"has shape \[.*5\].*asks for") as caught:
        circuit_of(with_weights(model, weights))
    assert name in caught.value.message


def test_an_unembedding_that_is_neither_there_nor_tied() -> None:
    model = gpt2(tie_word_embeddings=False)
    weights = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    with pytest.raises(ModelError, match=r"lm_head\.weight"):
        circuit_of(with_weights(model, weights))
