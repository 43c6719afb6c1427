"""Rules of functions: what depends on shapes and numbers alone is a number."""

from __future__ import annotations

import torch

from tapeout.ir import Circuit, GeneralFunction, Scalar
from tapeout.ir.nodes.functions import FUNCTIONS, Broadcast, Elementwise
from tapeout.passes.rules.common import is_float

_LAST_DIM_SIZE = FUNCTIONS["last_dim_size"]
_EXTREMA = (FUNCTIONS["min"], FUNCTIONS["max"])


def last_dim_size_of_known(node: GeneralFunction) -> Circuit | None:
    """`last_dim_size(x[.., 64]) --> 64`"""
    if node.spec is not _LAST_DIM_SIZE or not is_float(node):
        return None
    size = node.children[0].shape[-1]
    return Scalar(size, node.shape) if isinstance(size, int) else None


def function_of_scalars(node: GeneralFunction) -> Circuit | None:
    """`rsqrt(4) --> 0.5`, for functions that act on each number by itself"""
    spec = node.spec
    if not (isinstance(spec, Broadcast) or (isinstance(spec, Elementwise) and not spec.acts_on_last)):
        return None
    scalars = [child for child in node.children if isinstance(child, Scalar)]
    if len(scalars) < len(node.children):
        return None
    numbers = [torch.tensor(scalar.value, dtype=torch.float64) for scalar in scalars]
    return Scalar(float(spec.apply(*numbers)), node.shape)


def extremum_of_scalar(node: GeneralFunction) -> Circuit | None:
    """`max(2[n]) --> 2`"""
    (child, *_) = node.children
    if node.spec not in _EXTREMA or not isinstance(child, Scalar):
        return None
    size = child.shape[-1]
    return Scalar(child.value, node.shape) if isinstance(size, int) and size > 0 else None


FUNCTION_RULES = (last_dim_size_of_known, function_of_scalars, extremum_of_scalar)
