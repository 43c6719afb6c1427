"""Lowering to ONNX: a node at a time, each kind and function by one rule."""

from __future__ import annotations

import onnx_ir
import torch

from tapeout.backends.common.program import Program
from tapeout.backends.common.rules import lowered
from tapeout.backends.common.weights import Weights
from tapeout.backends.onnx.graph import Lowering
from tapeout.backends.onnx.kinds import RULES
from tapeout.backends.onnx.model import finished
from tapeout.backends.onnx.options import OnnxOptions


def lower(program: Program, options: OnnxOptions) -> tuple[onnx_ir.Model, int]:
    """The circuits as one ONNX model, one input an input, one result a root; and the bytes of weights copied.

    The model's weights are the arrays' own memory. Its values are called after the circuit's nodes; what a node
    stands for is in its `metadata_props` under `origin`.

    Raises:
        UnsupportedError: for a kind or function without a rule, or that the opset cannot express.
        LoweringError: for anything else that goes wrong, with the node.
    """
    weights = Weights(program.dtype, torch.device("cpu"))
    low = Lowering(program, weights, options)
    for node in program.nodes:  # constants, and views of them, are made when a rule asks for them
        if node not in low.values and weights.value(node) is None:
            low.current = node
            low.values[node] = lowered(low, RULES, node, program.roots)
    return finished(low, program.roots), weights.packed_bytes
