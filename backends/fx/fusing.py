"""Products of one value with several weights, such as queries, keys and values, as one product and views of it.

A GPU starts fewer and larger products. Products that widen the value, such as an MLP's, fill it by themselves, and
their results would be kept together longer than they are needed. The weights are joined in one tensor that takes the
place of the separate ones; only weights that were copied to the device anyway are joined, so that no weight is held
twice. On the CPU one large product was measured no faster than three.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from tapeout.backends.common.weights import Weights, unused


def fuse_products(graph: fx.Graph, tensors: dict[str, torch.Tensor], owners: Sequence[Weights]) -> None:
    """Joins what can be joined, in the graph and in the tensors that it reads.

    Args:
        graph: of products as `F.linear`.
        tensors: what its attributes are, by name.
        owners: what made the tensors, and knows which of them are copies.
    """
    for group in _groups(graph, tensors, owners):
        weights: list[Any] = [node.args[1] for node in group]
        biases: list[Any] = [node.args[2] for node in group]
        with graph.inserting_before(group[0]):
            joined = _joined(graph, tensors, weights), _joined(graph, tensors, biases)
            out = graph.call_function(F.linear, (group[0].args[0], *joined))
            out.meta = dict(group[0].meta)
            start = 0
            for node, weight in zip(group, weights, strict=True):
                width = tensors[_target(weight)].shape[0]
                view = graph.call_function(torch.narrow, (out, -1, start, width))
                view.meta = dict(node.meta)
                node.replace_all_uses_with(view)
                start += width
        for node in group:
            graph.erase_node(node)
        for attribute in dict.fromkeys(each for each in (*weights, *biases) if each is not None):
            if not attribute.users:
                graph.erase_node(attribute)
                del tensors[_target(attribute)]


def _groups(graph: fx.Graph, tensors: dict[str, torch.Tensor], owners: Sequence[Weights]) -> list[list[fx.Node]]:
    """Products of one value, two or more, that do not widen it, whose weights are copies that nothing else reads."""
    groups: dict[object, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.target is not F.linear:
            continue
        value, weight, bias = node.args
        tensor = tensors.get(_target(weight))
        if tensor is None or len(weight.users) > 1 or tensor.shape[0] > tensor.shape[1]:
            continue
        if any(owner.is_copy(tensor) for owner in owners):
            groups.setdefault((value, bias is None), []).append(node)
    return [group for group in groups.values() if len(group) > 1]


def _joined(graph: fx.Graph, tensors: dict[str, torch.Tensor], parts: Sequence[fx.Node | None]) -> fx.Node | None:
    """An attribute that holds the tensors of the parts, one below the other."""
    names = [_target(part) for part in parts if part is not None]
    if not names:
        return None
    name = unused("_".join(dict.fromkeys(names)), tensors)
    tensors[name] = torch.cat([tensors[each] for each in names])
    return graph.get_attr(name)


def _target(node: object) -> str:
    return str(node.target) if isinstance(node, fx.Node) and node.op == "get_attr" else ""
