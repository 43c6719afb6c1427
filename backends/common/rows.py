"""Batches in parts: rows filled up, taken apart and put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def filled_up(values: Sequence[torch.Tensor], rows: int) -> list[torch.Tensor]:
    """The values with their first row repeated behind them until they have that many rows."""
    return [
        each if each.shape[0] >= rows else torch.cat([each, each[:1].expand(rows - each.shape[0], *each.shape[1:])])
        for each in values
    ]


def split_rows(values: Sequence[torch.Tensor], most: int) -> list[list[torch.Tensor]]:
    """The values in parts of at most so many rows."""
    rows = values[0].shape[0]
    return [[value[start : start + most] for value in values] for start in range(0, rows, most)]


def joined(parts: Sequence[Any]) -> Any:
    """The results of the parts, one behind the other."""
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(list(parts))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def first_rows(results: Any, rows: int) -> Any:
    """The results without the rows that were filled up."""
    if isinstance(results, torch.Tensor):
        return results[:rows]
    return tuple(each[:rows] for each in results)
