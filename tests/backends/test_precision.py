"""bfloat16: products are narrow, all else is float32; the error is no larger than that of Hugging Face's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness import integers, symbol, tensor
from random_models import gpt2, llama
from splits import by_head_and_position, difference

from tapeout.backends.common.precision import is_product, narrow_arrays, narrow_nodes
from tapeout.compiler import Compiled, compile
from tapeout.ir import Add, Array, Circuit, Einsum, GeneralFunction, Symbol

BF16, F32 = torch.bfloat16, torch.float32
LENGTH, ROWS, WORDS = 6, 100, 50
MODELS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: gpt2(3, n_head=4, n_embd=64, n_layer=3, vocab_size=WORDS),
    "llama": lambda: llama(3, hidden_size=64, num_hidden_layers=3, vocab_size=WORDS),
}


def weight(*shape: int, seed: int = 1, dtype: torch.dtype = F32) -> Array:
    return Array(tensor(*shape, seed=seed, dtype=F32).to(dtype), f"w{seed}")


def einsum(text: str, *nodes: Circuit) -> Einsum:
    return Einsum.from_einsum_string(text, *nodes)


def types(compiled: Compiled, *values: torch.Tensor) -> dict[str, torch.dtype]:
    """The dtype of every value while the module runs, by the name of its node."""
    found = {}

    class Looks(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, torch.Tensor):
                found[n.name] = result.dtype
            return result

    Looks(compiled.executable.module).run(*values)  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("family", MODELS)
def test_the_residual_stream_norms_and_the_result_are_float32(family: str) -> None:
    model = MODELS[family]()
    circuit = difference(by_head_and_position(model, LENGTH))
    compiled = compile(circuit, inputs=["tokens", "labels"], dtype="bfloat16")
    tokens, labels = integers(ROWS, LENGTH, below=WORDS), integers(ROWS, 2, below=WORDS, seed=1)
    found = types(compiled, tokens, labels)
    assert found["logit_diff"] is F32
    for name in ("a0_norm", "b0_resid_a", "m0_norm", "a1_input", "final_input", "final_call"):
        assert found[name] is F32, name
    assert all(node.args[0].name in found and found[node.args[0].name] is BF16 for node in linears(compiled))
    assert all(found[node.name] is BF16 for node in linears(compiled))


def linears(compiled: Compiled) -> list[Any]:
    graph = compiled.executable.module.graph  # type: ignore[attr-defined]
    return [node for node in graph.nodes if node.target is torch.nn.functional.linear]


@pytest.mark.parametrize("family", MODELS)
def test_the_error_is_less_than_hugging_faces_own(family: str) -> None:
    """Both against float64 and the weights before they are rounded; root mean square over many rows."""
    model = MODELS[family]()
    circuit = difference(by_head_and_position(model, LENGTH))
    tokens, labels = integers(ROWS, LENGTH, below=WORDS), integers(ROWS, 2, below=WORDS, seed=1)
    exact, ours = (
        compile(circuit, inputs=["tokens", "labels"], dtype=dtype)(tokens=tokens, labels=labels).double()
        for dtype in ("float64", "bfloat16")
    )
    with torch.inference_mode():
        logits = model.to(BF16)(tokens, use_cache=False).logits[:, -1].double()
    first, second = logits.gather(1, labels).unbind(1)
    errors = [(each - exact).square().mean().sqrt().item() for each in (ours, first - second)]
    assert 0 < errors[0] < errors[1]


def test_what_is_narrow() -> None:
    x = Symbol((5, 4), symbol(1, (5, 4), "x").uuid, "x", BF16)
    product = einsum("sc,dc->sd", x, weight(3, 4, dtype=BF16))
    gate, up = (
        GeneralFunction.new_by_name(product, spec_name="silu"),
        einsum("sc,dc->sd", x, weight(3, 4, seed=2, dtype=BF16)),
    )
    gated = einsum("sd,sd->sd", gate, up)
    row = einsum("sd,sd->s", gate, up)
    total = Add(gated, product)
    probabilities = GeneralFunction.new_by_name(product, spec_name="softmax")
    scaled = einsum("sd,d->sd", gated, weight(3, seed=4, dtype=BF16))
    narrow = narrow_nodes([total, row, probabilities, scaled], BF16)
    assert {x, product, gate, up, gated} <= narrow
    assert not {total, row, probabilities, scaled} & narrow
    assert not narrow_nodes([total], F32)
    assert is_product(product)
    assert not is_product(row)
    assert not is_product(gated)


def test_only_what_products_read_is_held_narrow() -> None:
    x, w, scale = symbol(2, (5, 4), "x"), weight(3, 4), weight(3, seed=2)
    circuit = einsum("sd,d->sd", einsum("sc,dc->sd", x, w), scale)
    assert narrow_arrays([circuit]) == ({w}, {scale})
    compiled = compile(circuit, inputs=["x"], dtype="bfloat16")
    assert compiled.cost(1).weight_bytes == 3 * 4 * 2 + 3 * 4
    assert compile(circuit, inputs=["x"]).cost(1).weight_bytes == (3 * 4 + 3) * 4
    assert compile(Add(circuit, einsum("dc->d", w)), inputs=["x"], dtype="bfloat16").cost(1).weight_bytes == (
        3 * 4 * (2 + 4) + 3 * 4
    )
