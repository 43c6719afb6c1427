"""Lowering to ONNX: a node at a time, each kind and function by one rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir
import torch

from tapeout.backends.onnx.graph import Lowering
from tapeout.backends.onnx.kinds import RULES
from tapeout.backends.onnx.options import OnnxOptions
from tapeout.backends.rules import lowered
from tapeout.backends.weights import Weights
from tapeout.ir import Circuit, Symbol, postorder


def lower(
    roots: Sequence[Circuit],
    inputs: Sequence[Symbol],
    origins: Mapping[Circuit, str],
    dtype: torch.dtype = torch.float32,
    options: OnnxOptions | None = None,
    rows: int | None = None,
    order: Sequence[Circuit] | None = None,
) -> tuple[onnx_ir.Model, int]:
    """The circuits as one ONNX model, one input an input, one result a root; and the bytes of weights copied.

    The model's weights are the arrays' own memory. Its values are called after the circuit's nodes; what a node
    stands for is in its `metadata_props` under `origin`.

    Args:
        roots: without modules and random variables; their free symbols must be among the inputs.
        inputs: symbols, in the order of the inputs. A symbolic size that occurs in them is read off at run time.
        origins: names for nodes.
        dtype: what floating values are computed in.
        options: the operators to use.
        rows: a typical batch size.
        order: every node below the roots, children before parents; None for `postorder`.

    Raises:
        UnsupportedError: for a kind or function without a rule, or that the opset cannot express.
        LoweringError: for anything else that goes wrong, with the node.
    """
    weights = Weights(dtype, torch.device("cpu"))
    low = Lowering(inputs, origins, weights, options or OnnxOptions(), rows)
    for node in order or postorder(*roots):  # constants, and views of them, are made when a rule asks for them
        if node not in low.values and weights.value(node) is None:
            low.current = node
            low.values[node] = lowered(low, RULES, node, roots)
    return low.finish(roots), weights.packed_bytes
