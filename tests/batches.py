"""Circuits over batches: the constants of a case become inputs, and what comes out is known from the reference.

batch = Batch.of([build(torch.float64)], rows=3)
compile_many(batch.circuits, "fx", batch.names)(**batch.values(torch.float64)) beside batch.expected
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from harness import arrays
from splits import bind_row

from tapeout.ir import Circuit, Matcher
from tapeout.ir.errors import DataError, ModuleBindingError, ShapeError, TapeoutError, TypeMismatchError


@dataclass(frozen=True)
class Batch:
    """Circuits whose floating constants are inputs.

    Attributes:
        circuits: the circuits of one row.
        given: for every input its float64 values, one row an entry of the batch.
        expected: for every circuit its value in float64, row by row.
    """

    circuits: list[Circuit]
    given: dict[str, torch.Tensor]
    expected: list[torch.Tensor]

    @property
    def names(self) -> list[str]:
        return list(self.given)

    def values(self, dtype: torch.dtype, rows: int | None = None) -> dict[str, torch.Tensor]:
        """The inputs in a dtype, the first rows of them or repeated."""
        return {name: _rows(value, rows).to(dtype) for name, value in self.given.items()}

    def wanted(self, rows: int) -> list[torch.Tensor]:
        """The results for so many rows."""
        return [_rows(value, rows) for value in self.expected]

    @staticmethod
    def of(circuits: Sequence[Circuit], rows: int = 3) -> Batch:
        """The circuits over inputs; a row is the constants, made smaller by a tenth each time."""
        named, given = [], {}
        for number, circuit in enumerate(circuits):
            circuit, inputs = _with_inputs(circuit, f"c{number}")
            named.append(circuit)
            for name, value in inputs.items():
                given[name] = torch.stack([value * (1 - 0.1 * row) for row in range(rows)])
        expected = [torch.stack([_row(circuit, given, row) for row in range(rows)]) for circuit in named]
        return Batch(named, given, expected)


def _with_inputs(circuit: Circuit, prefix: str) -> tuple[Circuit, dict[str, torch.Tensor]]:
    found = [node for node in dict.fromkeys(arrays(circuit)) if node.value.is_floating_point()]
    names: Mapping[Circuit, str] = {node: f"{prefix}_{i}" for i, node in enumerate(found)}
    if found:
        circuit = circuit.update(Matcher.circuits(*found), lambda node: node.rename(names[node]))
    return circuit, {names[node]: node.value for node in found}


def _row(circuit: Circuit, given: Mapping[str, torch.Tensor], row: int) -> torch.Tensor:
    own = [(name, value[row].clone()) for name, value in given.items() if circuit.get(name)]
    return bind_row(circuit, own).evaluate("float64")


def _rows(value: torch.Tensor, rows: int | None) -> torch.Tensor:
    if rows is None:
        return value
    return value[torch.arange(rows) % value.shape[0]].clone()


def as_tuple(result: Any) -> tuple[torch.Tensor, ...]:
    """What a compiled circuit gave, for one root or several."""
    return result if isinstance(result, tuple) else (result,)


def _tokens(*shape: int, fill: int = 0, dtype: torch.dtype = torch.int64, device: str = "cpu") -> torch.Tensor:
    return torch.full(shape, fill, dtype=dtype, device=device)


WRONG_INPUTS: dict[str, tuple[dict[str, Any], type[TapeoutError]]] = {
    "one is missing": ({"tokens": _tokens(2, 5)}, ModuleBindingError),
    "one is unknown": ({"tokens": _tokens(2, 5), "labels": _tokens(2, 2), "mask": _tokens(2)}, ModuleBindingError),
    "another length": ({"tokens": _tokens(2, 6), "labels": _tokens(2, 2)}, ShapeError),
    "an axis too few": ({"tokens": _tokens(5), "labels": _tokens(2, 2)}, ShapeError),
    "another dtype": ({"tokens": _tokens(2, 5, dtype=torch.int32), "labels": _tokens(2, 2)}, TypeMismatchError),
    "no tensor": ({"tokens": [[0] * 5] * 2, "labels": _tokens(2, 2)}, TypeMismatchError),
    "another device": ({"tokens": _tokens(2, 5, device="meta"), "labels": _tokens(2, 2)}, TypeMismatchError),
    "too large a token": ({"tokens": _tokens(2, 5, fill=11), "labels": _tokens(2, 2)}, DataError),
    "too large a label": ({"tokens": _tokens(2, 5), "labels": _tokens(2, 2, fill=11)}, DataError),
    "a negative token": ({"tokens": _tokens(2, 5, fill=-1), "labels": _tokens(2, 2)}, DataError),
    "no rows": ({"tokens": _tokens(0, 5), "labels": _tokens(0, 2)}, DataError),
    "fewer rows": ({"tokens": _tokens(3, 5), "labels": _tokens(2, 2)}, ShapeError),
}
"""What may not be given for `tokens` [rows, 5] and `labels` [rows, 2] of a vocabulary of 11, and the error."""
