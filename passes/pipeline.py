"""Running passes in order, with somebody looking on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from tapeout.ir import Circuit, circuit_text, nodes_below
from tapeout.ir.errors import PassError, TapeoutError
from tapeout.passes.base import Pass


@dataclass(frozen=True, slots=True)
class PassRecord:
    """One pass that ran.

    Attributes:
        name: the pass.
        nodes_before: the number of distinct nodes it was given, bodies of modules included.
        nodes_after: the number it returned.
        seconds: how long it took.
        changed: whether it returned another circuit.
    """

    name: str
    nodes_before: int
    nodes_after: int
    seconds: float
    changed: bool


Observer = Callable[[Pass, Circuit, Circuit, PassRecord], None]
"""Called after each pass with the pass, the circuit before, the circuit after, and the record."""


class Pipeline:
    """Passes to run in order.

    Args:
        passes: the passes.
        observers: called after each pass (see `verify`, `print_each`).
    """

    def __init__(self, passes: Iterable[Pass], observers: Iterable[Observer] = ()) -> None:
        self.passes = tuple(passes)
        self.observers = tuple(observers)

    def run(self, circuit: Circuit) -> tuple[Circuit, list[PassRecord]]:
        """The circuit after all passes, and a record of each.

        Raises:
            TapeoutError: of the kind of what went wrong, with the pass and those before it named.
        """
        records: list[PassRecord] = []
        count = count_nodes(circuit)
        for each in self.passes:
            start = time.perf_counter()
            try:
                after = each(circuit)
            except TapeoutError as error:
                done = ", ".join(record.name for record in records) or "none"
                error.add_note(f"in pass {each.name!r} on {circuit!r}; passes already run: {done}")
                raise
            seconds = time.perf_counter() - start
            record = PassRecord(each.name, count, count_nodes(after), seconds, after is not circuit)
            for observer in self.observers:
                observer(each, circuit, after, record)
            records.append(record)
            circuit, count = after, record.nodes_after
        return circuit, records

    def __call__(self, circuit: Circuit) -> Circuit:
        return self.run(circuit)[0]


def count_nodes(*circuits: Circuit) -> int:
    """The number of distinct nodes, bodies of modules included."""
    return len(nodes_below(*circuits))


def verify(
    evaluate: Callable[[Circuit], torch.Tensor],
    bind: Callable[[Circuit], Circuit] = lambda c: c,
    tolerance: float = 1e-9,
) -> Observer:
    """An observer that evaluates before and after each preserving pass and compares.

    Args:
        evaluate: how to evaluate, such as `lambda c: c.evaluate("float64")`.
        bind: what makes a circuit one that can be evaluated (inputs bound).
        tolerance: largest difference allowed, relative to the largest value (absolute below 1).

    Raises:
        PassError: from the observer, if a preserving pass changed the value or the shape.
    """

    def observe(each: Pass, before: Circuit, after: Circuit, record: PassRecord) -> None:
        if each.kind != "preserving" or before is after:
            return
        expected, found = evaluate(bind(before)), evaluate(bind(after))
        if expected.shape != found.shape:
            raise PassError(
                f"pass {each.name!r} changed the shape from {list(expected.shape)} to {list(found.shape)}",
                hint="a preserving pass must keep shape and value; report it with the circuit before",
            )
        if expected.numel() == 0:
            return
        error = float((expected - found).abs().max())
        if not error <= tolerance * max(1.0, float(expected.abs().max())):
            raise PassError(
                f"pass {each.name!r} changed the value by {error:.3g} (tolerance {tolerance:.3g})",
                hint="a preserving pass must keep the value; report it with the circuit before",
            )

    return observe


def print_each(write: Callable[[str], None] = print) -> Observer:
    """An observer that writes the circuit after each pass that changed it."""

    def observe(each: Pass, before: Circuit, after: Circuit, record: PassRecord) -> None:
        state = circuit_text(after) if record.changed else "(unchanged)"
        write(
            f"# after {each.name}: {record.nodes_before} -> {record.nodes_after} nodes, {record.seconds:.3f} s\n{state}"
        )

    return observe
