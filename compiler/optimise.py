"""The execution passes in their order, and somebody looking on."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from tapeout.backends.reference import evaluate_many
from tapeout.compiler.config import Config
from tapeout.compiler.inputs import Input
from tapeout.compiler.order import evaluation_order
from tapeout.ir import Array, Circuit, Symbol, circuit_text, substitute_symbols
from tapeout.ir.errors import PassError
from tapeout.ir.gc_pause import without_gc
from tapeout.passes.add_batch import AddBatch
from tapeout.passes.execution import ExecutionPass, Origins, Roots
from tapeout.passes.inline import Inline
from tapeout.passes.kernels import Kernels
from tapeout.passes.nest_sums import NestSums
from tapeout.passes.pipeline import PassRecord, count_nodes
from tapeout.passes.push_gather import PushGather
from tapeout.passes.push_index import PushIndex
from tapeout.passes.reroll import Reroll
from tapeout.passes.share_rows import ShareRows
from tapeout.passes.simplify import Simplify

BEFORE_BATCH: tuple[ExecutionPass, ...] = (
    Simplify(), NestSums(), PushIndex(), PushGather(), Simplify(), Reroll(), Simplify(),
)  # fmt: skip
"""What runs on the circuit of one row."""

AFTER_BATCH: tuple[ExecutionPass, ...] = (Simplify(), Kernels(), ShareRows(), Simplify())
"""What runs once the batch axis is there."""

ORDER = "order"
"""The last step: it changes no circuit, but the order in which the nodes are evaluated."""

_ALWAYS = frozenset(("inline", "add_batch"))
_VERIFY_TOLERANCE = 1e-9
Write = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Optimised:
    """What the execution passes made of circuits.

    Attributes:
        roots: the circuits.
        origins: names for their nodes.
        records: the passes that ran.
        order: the nodes in the order of evaluation; None for `postorder`.
    """

    roots: Roots
    origins: Origins
    records: list[PassRecord]
    order: tuple[Circuit, ...] | None = None


@without_gc
def optimise(
    roots: Sequence[Circuit],
    inputs: Sequence[Input],
    level: int,
    config: Config,
    dtype: torch.dtype = torch.float32,
    rows: int | None = None,
    write: Write = lambda line: print(line, file=sys.stderr),
) -> Optimised:
    """Runs the execution passes, and chooses the order of evaluation.

    Args:
        roots: the circuits, over the symbols of one row.
        inputs: the inputs.
        level: 0 for no more than lowering needs, 1 for all passes.
        config: see `Config`.
        dtype: what floating values will be computed in.
        rows: a typical batch size.
        write: where debug output goes.

    Raises:
        TapeoutError: of the kind of what went wrong, with the pass and those before it named.
    """
    batch = AddBatch(tuple((each.symbol, each.batched) for each in inputs))
    passes = [Inline(), *(BEFORE_BATCH if level else ()), batch, *(AFTER_BATCH if level else ())]
    _check_skips(config)
    onlooker = _Onlooker(config, inputs, write)
    current, origins, records = tuple(roots), Origins(), list[PassRecord]()
    count = count_nodes(*current)
    for each in passes:
        if each.name in config.skip:
            continue
        each = onlooker.prepare(each)
        start = time.perf_counter()
        try:
            after = each.run_many(current, origins)
        except Exception as error:
            error.add_note(f"in pass {each.name!r}; {already_run(records)}")
            raise
        seconds = time.perf_counter() - start
        record = PassRecord(each.name, count, count_nodes(*after), seconds, after != current)
        onlooker.look(record, current, after)
        records.append(record)
        current, count = after, record.nodes_after
    origins.normal.clear()
    if not level or ORDER in config.skip:
        return Optimised(current, origins, records)
    start = time.perf_counter()
    order = evaluation_order(current, dtype, rows)
    records.append(PassRecord(ORDER, count, count, time.perf_counter() - start, changed=False))
    onlooker.look(records[-1], current, current)
    return Optimised(current, origins, records, order)


def already_run(records: Sequence[PassRecord]) -> str:
    return f"passes already run: {', '.join(record.name for record in records) or 'none'}"


def _check_skips(config: Config) -> None:
    known = {ORDER, *(each.name for each in (*BEFORE_BATCH, *AFTER_BATCH))}
    unknown = config.skip - known
    if unknown:
        raise PassError(
            f"there is no execution pass {', '.join(sorted(unknown))} to skip",
            hint=f"there are {', '.join(sorted(known))}; {' and '.join(sorted(_ALWAYS))} always run",
        )


class _Onlooker:
    """What `Config` asks to be said, written and checked after each pass."""

    def __init__(self, config: Config, inputs: Sequence[Input], write: Write) -> None:
        self.config, self.write = config, write
        self.number = 0
        self.fired: Counter[str] = Counter()
        self.values = _sample_values(inputs) if "verify" in config.debug else {}

    def prepare(self, each: ExecutionPass) -> ExecutionPass:
        self.fired = Counter()
        return replace(each, fired=self.fired) if isinstance(each, Simplify) and "rules" in self.config.debug else each

    def look(self, record: PassRecord, before: Roots, after: Roots) -> None:
        if self.config.debug & {"passes", "time"}:
            took = f" in {record.seconds:.3f} s" if "time" in self.config.debug else ""
            self.write(f"{record.name}: {record.nodes_before} -> {record.nodes_after} nodes{took}")
        for rule, count in self.fired.most_common():
            self.write(f"  {rule}: {count} times")
        if self.config.dump is not None:
            self.config.dump.mkdir(parents=True, exist_ok=True)
            file = self.config.dump / f"{self.number:02d}_{record.name}.txt"
            file.write_text(circuit_text(*after) + "\n", encoding="utf-8")
        if "verify" in self.config.debug and record.name != "add_batch" and record.changed:
            self._verify(record.name, before, after)
        self.number += 1

    def _verify(self, name: str, before: Roots, after: Roots) -> None:
        expected, found = (
            evaluate_many([substitute_symbols(root, self.values) for root in roots], torch.float64)
            for roots in (before, after)
        )
        for number, (left, right) in enumerate(zip(expected, found, strict=True)):
            error = float((left - right).abs().max()) if left.numel() else 0.0
            if left.shape != right.shape or not error <= _VERIFY_TOLERANCE * max(1.0, float(left.abs().max())):
                raise PassError(
                    f"pass {name!r} changed the value of circuit {number} by {error:.3g}",
                    facts=[f"shapes {list(left.shape)} and {list(right.shape)}"],
                    hint=f"leave it out with TAPEOUT_SKIP={name}, and report it with the circuits that "
                    "TAPEOUT_DUMP writes",
                )


def _sample_values(inputs: Sequence[Input]) -> dict[Symbol, Circuit]:
    """Random values for the inputs of one row and of two."""
    generator = torch.Generator().manual_seed(0)
    out: dict[Symbol, Circuit] = {}
    for each in inputs:
        shape = [int(size) for size in each.symbol.shape]  # type: ignore[arg-type]
        if each.dtype.is_floating_point:
            rows = torch.randn(2, *shape, generator=generator).to(each.dtype)
        else:
            rows = torch.randint(0, each.below or 2, (2, *shape), generator=generator)
        out[each.batched], out[each.symbol] = Array(rows), Array(rows[0])
    return out
