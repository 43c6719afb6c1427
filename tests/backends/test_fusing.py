"""Products of one value become one: on a GPU; here with weights that are copies because of their dtype."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from random_models import gpt2, llama
from splits import by_head_and_position, difference
from tolerances import assert_close
from torch.nn import functional as F

from tapeout.backends.common.weights import Weights
from tapeout.backends.fx.fusing import fuse_products
from tapeout.compiler import Compiled, compile

VALUES = {"tokens": torch.arange(15).reshape(3, 5) % 11, "labels": torch.arange(6).reshape(3, 2)}


class _All(Weights):
    """Takes every tensor for a copy, or none."""

    def __init__(self, answer: bool) -> None:
        super().__init__(torch.float32, torch.device("cpu"))
        self.answer = answer

    def is_copy(self, value: torch.Tensor) -> bool:
        return self.answer


def fused(compiled: Compiled, answer: bool = True) -> tuple[Any, dict[str, torch.Tensor]]:
    module: Any = compiled.executable.module  # type: ignore[attr-defined]
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    graph = torch.fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    fuse_products(graph, tensors, (_All(answer),))
    root = torch.nn.Module()
    for name, value in tensors.items():
        root.register_buffer(name, value.detach())
    graph.lint()
    return torch.fx.GraphModule(root, graph), tensors


def linears(module: Any) -> int:
    return sum(node.target is F.linear for node in module.graph.nodes)


@pytest.mark.parametrize(("model", "before", "after"), [(gpt2, 6, 4), (llama, 7, 5)])
def test_queries_keys_and_values_are_one_product(model: Any, before: int, after: int) -> None:
    circuit = difference(by_head_and_position(model(), 5))
    compiled = compile(circuit, inputs=list(VALUES))
    expected, layers = compiled(**VALUES), linears(compiled.executable.module) // before  # type: ignore[attr-defined]
    size = sum(value.numel() for value in compiled.executable.module.parameters())  # type: ignore[attr-defined]
    module, tensors = fused(compiled)
    assert_close(module(*VALUES.values()), expected, torch.float32)
    assert linears(module) == after * layers + 1  # the last layer's queries are of one position
    assert sum(value.numel() for value in tensors.values()) <= size + 2 * layers * 3 * 32  # shared biases are repeated


def test_weights_that_are_no_copies_stay_apart() -> None:
    compiled = compile(difference(by_head_and_position(gpt2(), 5)), inputs=list(VALUES))
    before = linears(compiled.executable.module)  # type: ignore[attr-defined]
    assert linears(fused(compiled, answer=False)[0]) == before
