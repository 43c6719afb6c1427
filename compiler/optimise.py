"""The execution passes in their order, and somebody looking on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tapeout.compiler.config import Config
from tapeout.ir import Circuit, Symbol, circuit_text
from tapeout.ir.errors import PassError, TapeoutError
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


@dataclass(frozen=True, slots=True)
class Optimised:
    """What the execution passes made of circuits.

    Attributes:
        roots: the circuits.
        origins: names for their nodes.
        records: the passes that ran.
    """

    roots: Roots
    origins: Origins
    records: list[PassRecord]


@without_gc
def optimise(
    roots: Sequence[Circuit],
    batch: Mapping[Symbol, Symbol],
    level: int,
    config: Config,
    write: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> Optimised:
    """Runs the execution passes.

    Args:
        roots: the circuits, over the unbatched inputs.
        batch: for each input the symbol with its batch axis.
        level: 0 for no more than lowering needs, 1 for all passes.
        config: see `Config`.
        write: where debug output goes.

    Raises:
        TapeoutError: of the kind of what went wrong, with the pass and those before it named.
    """
    passes: list[ExecutionPass] = [Inline()]
    if level > 0:
        passes += BEFORE_BATCH
    passes.append(AddBatch(tuple(batch.items())))
    if level > 0:
        passes += AFTER_BATCH
    known = {each.name for each in passes}
    unknown = config.skip - known
    if unknown and level > 0:
        raise PassError(
            f"there is no execution pass {', '.join(sorted(unknown))} to skip", hint=f"there are {', '.join(sorted(known))}"
        )
    current: Roots = tuple(roots)
    origins, records = Origins(), list[PassRecord]()
    for number, each in enumerate(passes):
        if each.name in config.skip - {"inline", "add_batch"}:
            continue
        start = time.perf_counter()
        try:
            after = each.run_many(current, origins)
        except TapeoutError as error:
            error.add_note(f"in pass {each.name!r}; passes already run: {', '.join(r.name for r in records) or 'none'}")
            raise
        seconds = time.perf_counter() - start
        records.append(
            PassRecord(each.name, count_nodes(*current), count_nodes(*after), seconds, after != current)
        )
        current = after
        _observe(number, records[-1], current, config, write)
    return Optimised(current, origins, records)


def _observe(number: int, record: PassRecord, roots: Roots, config: Config, write: Callable[[str], None]) -> None:
    if config.debug & {"passes", "time"}:
        took = f" in {record.seconds:.3f} s" if "time" in config.debug else ""
        write(f"{record.name}: {record.nodes_before} -> {record.nodes_after} nodes{took}")
    if config.dump is not None:
        config.dump.mkdir(parents=True, exist_ok=True)
        (config.dump / f"{number:02d}_{record.name}.txt").write_text(circuit_text(*roots) + "\n")
