"""Freezing: on the CPU, weights of linear products are packed once, when compiling, into the layout of the library.

Inductor then calls oneDNN's products, which add the bias and apply an activation without a further pass over the
result. The packed copies are beside the module's own weights, which fx, gradients and saving go on using.
"""

from __future__ import annotations

import torch
from torch import fx
from torch.nn import functional as F

_PACKED = (torch.float32, torch.bfloat16)


def packed_bytes(module: fx.GraphModule, device: torch.device) -> int:
    """The bytes of the weights that freezing packs; 0 where it packs none.

    oneDNN fills axes up to whole blocks (at most 64 entries), which is not counted.
    """
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return 0
    weights = {
        str(node.args[1].target): module.get_parameter(str(node.args[1].target))
        for node in module.graph.nodes
        if node.target is F.linear and isinstance(node.args[1], fx.Node) and node.args[1].op == "get_attr"
    }
    return sum(value.numel() * value.element_size() for value in weights.values() if value.dtype in _PACKED)


def options(module: fx.GraphModule, device: torch.device) -> dict[str, bool]:
    """Settings of Inductor: freezing, where it packs something."""
    return {"freezing": packed_bytes(module, device) > 0}
