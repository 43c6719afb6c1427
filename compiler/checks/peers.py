"""What is not ours, run beside the backends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from tapeout.backends.rust_circuit import installed, to_rust
from tapeout.compiler.checks.reference import in_dtype
from tapeout.compiler.inputs import check_values, find_inputs
from tapeout.ir import Array, Circuit, substitute_symbols
from tapeout.ir.errors import UnsupportedError

Peer = Callable[[], torch.Tensor]
"""Something that gives the values, on the inputs that it knows already."""


def rust_circuit_peer(circuit: Circuit, inputs: Mapping[str, torch.Tensor], dtype: torch.dtype = torch.float32) -> Peer:
    """The circuit over its inputs, converted to rust_circuit's, which evaluates it node by node.

    Raises:
        UnsupportedError: where rust_circuit is not installed, or has no such node.
    """
    if not installed():
        raise UnsupportedError(
            "rust_circuit is not installed", hint="it has wheels for CPython 3.11 on Linux: pip install rust-circuit"
        )
    rows, found = find_inputs([circuit], list(inputs), dtype)
    given = check_values(found, in_dtype(found, inputs), torch.device("cpu"))
    table = {each.symbol: Array(value, each.name) for each, value in zip(found, given, strict=True)}
    bound = substitute_symbols(rows[0], table)
    theirs: Any = to_rust(bound.update(lambda node: _is_of_another(node, dtype), lambda node: _cast(node, dtype)))

    def evaluate() -> torch.Tensor:
        try:
            value: torch.Tensor = theirs.evaluate()
        except (ValueError, RuntimeError) as error:
            raise UnsupportedError(
                f"rust_circuit cannot evaluate {circuit!r}: {str(error).splitlines()[0]}",
                hint="compare with the reference, which is always there",
            ) from error
        return value

    return evaluate


def _is_of_another(node: Circuit, dtype: torch.dtype) -> bool:
    return isinstance(node, Array) and node.value.is_floating_point() and node.value.dtype is not dtype


def _cast(node: Circuit, dtype: torch.dtype) -> Circuit:
    return Array(node.cast_array().value.to(dtype), node.op_name)
