"""Hashes of tensors by their content."""

from __future__ import annotations

import torch
import xxhash

HASH_DIGITS = 24
"""How many digits of a tensor's hash are printed."""

_CHUNK = 1 << 24


def hash_tensor(value: torch.Tensor) -> str:
    """xxh3 (128 bits) of the elements in row-major order, in chunks: a strided view is never copied whole."""
    digest = xxhash.xxh3_128()
    flat_rows = value.reshape(1, -1) if value.is_contiguous() or value.ndim < 2 else value
    rows = flat_rows.shape[0]
    step = max(1, _CHUNK // max(1, flat_rows[0].numel() if rows else 1))
    for start in range(0, rows, step):
        chunk = flat_rows[start : start + step].contiguous().cpu()
        digest.update(chunk.view(-1).view(torch.uint8).numpy().data if chunk.numel() else b"")
    return digest.hexdigest()
