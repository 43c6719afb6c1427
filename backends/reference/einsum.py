"""An einsum of tensors. Axes repeated in an operand take a diagonal, in the output they make one."""

from __future__ import annotations

from collections.abc import Sequence

import opt_einsum
import torch

Axes = tuple[int, ...]


def einsum(tensors: Sequence[torch.Tensor], in_axes: Sequence[Axes], out_axes: Axes) -> torch.Tensor:
    """The sum of products of at least one tensor, with the axes as integers."""
    out = tuple(dict.fromkeys(out_axes))
    if len(tensors) == 1:
        result = _sum_one(tensors[0], in_axes[0], out)
    else:
        operands = [part for pair in zip(tensors, in_axes, strict=True) for part in _take_diagonal(*pair)]
        result = opt_einsum.contract(*operands, out, backend="torch")
    return _make_diagonal(result, out, out_axes) if len(out) < len(out_axes) else result


def _take_diagonal(tensor: torch.Tensor, axes: Axes) -> tuple[torch.Tensor, Axes]:
    while len(set(axes)) < len(axes):
        twice = next(axis for axis in axes if axes.count(axis) > 1)
        first, second = [i for i, axis in enumerate(axes) if axis == twice][:2]
        tensor = tensor.diagonal(dim1=first, dim2=second)  # the diagonal becomes the last axis
        axes = (*(axis for i, axis in enumerate(axes) if i not in (first, second)), twice)
    return tensor, axes


def _sum_one(tensor: torch.Tensor, axes: Axes, out: Axes) -> torch.Tensor:
    tensor, axes = _take_diagonal(tensor, axes)
    gone = [i for i, axis in enumerate(axes) if axis not in out]
    if gone:
        tensor = tensor.sum(gone)
    kept = [axis for axis in axes if axis in out]
    return tensor.permute([kept.index(axis) for axis in out])


def _make_diagonal(tensor: torch.Tensor, axes: Axes, out_axes: Axes) -> torch.Tensor:
    sizes = dict(zip(axes, tensor.shape, strict=True))
    result = tensor.new_zeros([sizes[axis] for axis in out_axes])
    view, view_axes = _take_diagonal(result, out_axes)
    view.copy_(tensor.permute([axes.index(axis) for axis in view_axes]))
    return result
