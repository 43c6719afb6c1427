"""The logit difference as a circuit, and binding it to a dataset."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

from tapeout.ir import Array, Circuit, Symbol
from tapeout.ir.errors import DataError, MatchError, ModelError, ShapeError, TypeMismatchError
from tapeout.models import circuit_of, split_circuit
from tapeout.tasks.ioi.circuit import bind_dataset, logit_diff_circuit

VOCABULARY, LENGTH = 50, 5
TOKENS = torch.tensor([[1, 7, 3, 20, 9], [1, 8, 30, 2, 49], [1, 0, 11, 12, 13]])
LABELS = torch.tensor([[4, 5], [0, 49], [6, 6]])


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny.gpt2(VOCABULARY)


@pytest.fixture(scope="module")
def logits(model: Any) -> Circuit:
    circuits, info = circuit_of(model)
    return split_circuit(circuits, info, LENGTH)[0]


@pytest.fixture(scope="module")
def metric(logits: Circuit) -> Circuit:
    return logit_diff_circuit(logits)


def test_value_is_that_of_hugging_face(metric: Circuit, model: Any) -> None:
    value = bind_dataset(metric, TOKENS, LABELS).evaluate()
    with torch.no_grad():
        io, s = model(TOKENS).logits[:, -1].gather(1, LABELS).unbind(1)
    torch.testing.assert_close(value, io - s, rtol=0, atol=1e-5)
    assert value[2] == 0  # IO and S are one token


def test_io_counts_for_and_s_against(metric: Circuit) -> None:
    value = bind_dataset(metric, TOKENS, LABELS).evaluate()
    exchanged = bind_dataset(metric, TOKENS, LABELS.flip(1)).evaluate()
    torch.testing.assert_close(value, -exchanged)
    assert value[:2].abs().min() > 1e-3


def test_rows_do_not_mix(metric: Circuit) -> None:
    together = bind_dataset(metric, TOKENS, LABELS).evaluate("float64")
    alone = [bind_dataset(metric, TOKENS[i : i + 1], LABELS[i : i + 1]).evaluate("float64") for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-12)


def test_the_circuit_of_one_prompt_has_no_batch_axis(metric: Circuit) -> None:
    assert metric.shape == ()
    assert metric.name == "logit_diff"
    (labels,) = metric.get("labels")
    assert isinstance(labels, Array) and labels.shape == (2,)
    assert bind_dataset(metric, TOKENS, LABELS).shape == (3,)


def test_logits_over_a_dataset(logits: Circuit, model: Any) -> None:
    bound = bind_dataset(logits, TOKENS)
    assert bound.shape == (3, LENGTH, VOCABULARY)
    with torch.no_grad():
        torch.testing.assert_close(bound.evaluate(), model(TOKENS).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "what"),
    [
        (TOKENS[:0], r"\[0, 5\] do not fit"),
        (TOKENS[:, :4], r"\[3, 4\] do not fit"),
        (TOKENS[0], r"\[5\] do not fit"),
        (TOKENS + 1, "index 50 is outside 0 to 49"),
        (TOKENS - 1, "index -1 is outside 0 to 49"),
    ],
)
def test_bad_tokens(metric: Circuit, tokens: torch.Tensor, what: str) -> None:
    with pytest.raises(DataError, match=what) as caught:
        bind_dataset(metric, tokens, LABELS[: len(tokens)] if tokens.ndim == 2 else LABELS).evaluate()
    assert "hint: " in str(caught.value)


@pytest.mark.parametrize("tokens", [TOKENS.float(), TOKENS.int()])
def test_tokens_are_int64(metric: Circuit, tokens: torch.Tensor) -> None:
    with pytest.raises(TypeMismatchError, match="int64"):
        bind_dataset(metric, tokens, LABELS)


@pytest.mark.parametrize("labels", [LABELS[:2], LABELS[:, :1], LABELS[:, 0]])
def test_labels_of_another_shape(metric: Circuit, labels: torch.Tensor) -> None:
    with pytest.raises(DataError, match=r"for 3 prompts[\s\S]*the IO and the S token"):
        bind_dataset(metric, TOKENS, labels)


def test_labels_outside_the_vocabulary(metric: Circuit) -> None:
    with pytest.raises(DataError, match="index 50 is outside 0 to 49"):
        bind_dataset(metric, TOKENS, LABELS + 1).evaluate()


def test_a_metric_is_not_evaluated_without_labels(metric: Circuit) -> None:
    """Its placeholder would give a number: the difference of a token with itself."""
    with pytest.raises(DataError, match="has labels, and none were given"):
        bind_dataset(metric, TOKENS)


def test_labels_need_a_metric(logits: Circuit) -> None:
    with pytest.raises(DataError, match=r"no node of that name[\s\S]*logit_diff_circuit"):
        bind_dataset(logits, TOKENS, LABELS)


def test_a_dataset_is_bound_once(metric: Circuit) -> None:
    with pytest.raises(DataError, match="bound already"):
        bind_dataset(bind_dataset(metric, TOKENS, LABELS), TOKENS, LABELS)


def test_a_circuit_without_tokens() -> None:
    with pytest.raises(MatchError, match="'tokens'"):
        bind_dataset(Array(torch.zeros(2)), TOKENS)


@pytest.mark.parametrize("shape", [(), (5,), (3, 5, 7)])
def test_logits_of_another_rank(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"\[SEQ, VOCAB\][\s\S]*bind_dataset"):
        logit_diff_circuit(Symbol.new_with_none_uuid(shape, "logits"))


@pytest.mark.parametrize(("length", "kind"), [(0, DataError), (65, ModelError)])
def test_lengths_that_no_circuit_has(model: Any, length: int, kind: type[Exception]) -> None:
    circuits, info = circuit_of(model)
    with pytest.raises(kind, match="hint: "):
        split_circuit(circuits, info, length)
