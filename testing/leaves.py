"""Leaves of circuits to test with: the same in every run."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import torch

from tapeout.ir import Array, Symbol


def tensor(
    *shape: int, seed: int = 0, low: float = -1.5, high: float = 1.5, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """Random numbers in a range, by seed."""
    generator = torch.Generator().manual_seed(seed)
    return (low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)).to(dtype)


def integers(*shape: int, below: int, seed: int = 0) -> torch.Tensor:
    """Random integers from 0, by seed."""
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


def symbol(number: int, shape: Sequence[object], name: str) -> Symbol:
    """A symbol that is the same in every run."""
    return Symbol(shape, UUID(int=number), name)  # type: ignore[arg-type]


def leaf(name: str, *shape: int, dtype: torch.dtype, low: float = -1.5, high: float = 1.5) -> Array:
    """A constant of random numbers in a range; another name or shape gives others."""
    seed = sum(map(ord, name)) + 1000 * len(shape) + sum(shape)
    return Array(tensor(*shape, seed=seed, low=low, high=high, dtype=dtype), name)
