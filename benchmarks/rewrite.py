"""How long taking GPT-2 small apart takes: the worked example's rewriting, in tapeout and in rust_circuit.

From `configure_transformer` to the last rename, on random weights. Three walks take turns in one process:
rust_circuit with the example's literal code, tapeout with the same code (over two hundred separate renames),
and tapeout with the renames given as two tables. rust_circuit remembers modules that it rewrote: its caches
are cleared before each run. Loading and evaluating are not part of it.

    python benchmarks/rewrite.py [--json]
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from seed_walk import (
    Sizes,
    Step,
    bind_rust,
    bind_tapeout,
    literal_walk,
    rust_system,
    table_walk,
    tapeout_system,
)

REFERENCE, LITERAL, TABLES = "rust_circuit", "tapeout", "tapeout, tables"


@dataclass
class Walk:
    """One way to walk, and what was measured.

    Attributes:
        name: shown in the table.
        first: the circuit to start from.
        start: begins the walk: each step's name and circuit.
        forget: drops what the system remembers of earlier walks.
        fresh: for each repetition the seconds of each step, after `forget`.
        again: for each repetition the seconds of each step of a second walk.
        nodes: distinct nodes of the last circuit.
        rebuilt: nodes that were not in the circuit before, summed over rewrites.
    """

    name: str
    first: Any
    start: Callable[[], Iterator[Step]]
    forget: Callable[[], None] = lambda: None
    fresh: list[dict[str, float]] = field(default_factory=list)
    again: list[dict[str, float]] = field(default_factory=list)
    nodes: int = 0
    rebuilt: int = 0

    def run(self) -> None:
        """Walks twice with a clock."""
        self.forget()
        self.fresh.append(self._timed())
        self.again.append(self._timed())

    def _timed(self) -> dict[str, float]:
        gc.collect()
        steps: dict[str, float] = {}
        before = time.perf_counter()
        for step, _ in self.start():
            now = time.perf_counter()
            steps[step] = steps.get(step, 0.0) + now - before
            before = now
        return steps

    def count(self) -> None:
        """Walks once more and counts nodes."""
        known = nodes_of(self.first)
        for _, circuit in self.start():
            found = nodes_of(circuit)
            self.rebuilt += len(found - known)
            known = found
        self.nodes = len(known)


def total(runs: list[dict[str, float]]) -> float:
    """The median of the runs' seconds."""
    return median(sum(run.values()) for run in runs)


def nodes_of(circuit: Any) -> set[Any]:
    """The distinct nodes of a circuit of either system."""
    out: set[Any] = set()
    stack = [circuit]
    while stack:
        node = stack.pop()
        if node not in out:
            out.add(node)
            stack.extend(node.children)
    return out


def make_walks(arguments: argparse.Namespace) -> list[Walk]:
    """The walks that can be made here, rust_circuit's first if it is installed."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from tapeout.models import circuit_of

    config = GPT2Config(
        n_layer=arguments.layers, n_head=arguments.heads, n_embd=arguments.hidden, vocab_size=arguments.vocab,
        n_positions=arguments.length, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    circuits, info = circuit_of(GPT2LMHeadModel(config))
    sizes = Sizes(arguments.layers, arguments.heads, arguments.length)
    ours, rust = tapeout_system(), rust_system()
    bound = bind_tapeout(circuits, info, sizes.length)
    walks = [
        Walk(LITERAL, bound, lambda: literal_walk(ours, bound, sizes)),
        Walk(TABLES, bound, lambda: table_walk(ours, bound, sizes)),
    ]
    if rust is None:
        return walks
    theirs, theirs_bound = rust, bind_rust(rust, circuits, info, sizes.length, "gelu_new")
    reference = Walk(
        REFERENCE,
        theirs_bound,
        lambda: literal_walk(theirs, theirs_bound, sizes),
        theirs.rc.clear_module_circuit_caches,
    )
    return [reference, *walks]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that is printed."""
    walks = make_walks(arguments)
    for repetition in range(arguments.repeat):
        turn = repetition % len(walks)
        for walk in walks[turn:] + walks[:turn]:
            walk.run()
            seconds = sum(walk.fresh[-1].values())
            _progress(f"run {repetition + 1}/{arguments.repeat}: {walk.name} {seconds:.3f} s")
    for walk in walks:
        walk.count()
    _progress("")
    reference = next((walk for walk in walks if walk.name == REFERENCE), None)
    return {
        "layers": arguments.layers,
        "heads": arguments.heads,
        "hidden": arguments.hidden,
        "length": arguments.length,
        "repeat": arguments.repeat,
        "threads": torch.get_num_threads(),
        "walks": {
            walk.name: {
                "seconds": total(walk.fresh),
                "ratio": None if reference is None else total(walk.fresh) / total(reference.fresh),
                "seconds_again": total(walk.again),
                "ratio_again": None if reference is None else total(walk.again) / total(reference.again),
                "nodes": walk.nodes,
                "rebuilt": walk.rebuilt,
                "steps": {step: median(run[step] for run in walk.fresh) for step in walk.fresh[0]},
            }
            for walk in walks
        },
    }


def _progress(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{line:78}", end="", file=sys.stderr, flush=True)


def report(result: dict[str, Any]) -> str:
    """The measurements as a table."""
    walks = result["walks"]
    lines = [
        f"GPT-2, {result['layers']} layers, {result['heads']} heads, {result['hidden']} hidden, "
        f"{result['length']} positions; medians of {result['repeat']} runs that take turns.",
        '"again": a second walk on the same circuit, with what is remembered of the first.',
        "",
        "| walk | seconds | ratio | again | ratio | nodes | nodes rebuilt |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, walk in walks.items():
        cells = [
            name,
            f"{walk['seconds']:.3f}",
            _two_digits(walk["ratio"]),
            f"{walk['seconds_again']:.3f}",
            _two_digits(walk["ratio_again"]),
            str(walk["nodes"]),
            str(walk["rebuilt"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"| step, seconds | {' | '.join(walks)} |", f"|---{'|---' * len(walks)}|"]
    for step in dict.fromkeys(step for walk in walks.values() for step in walk["steps"]):
        times = [f"{walk['steps'][step]:.3f}" for walk in walks.values()]
        lines.append(f"| {step} | {' | '.join(times)} |")
    if REFERENCE not in walks:
        lines += ["", "rust_circuit is not installed (it has wheels for CPython 3.11 on Linux): no ratios."]
    return "\n".join(lines)


def _two_digits(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=12, help="blocks")
    parser.add_argument("--heads", type=int, default=12, help="heads a layer")
    parser.add_argument("--hidden", type=int, default=768, help="size of the residual stream")
    parser.add_argument("--vocab", type=int, default=1000, help="size of the vocabulary")
    parser.add_argument("--length", type=int, default=16, help="positions")
    parser.add_argument("--repeat", type=int, default=7, help="runs of each walk")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    if arguments.repeat < 1:
        parser.error("--repeat must be at least 1")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """The command."""
    arguments = parse(argv)
    result = measure(arguments)
    print(json.dumps(result) if arguments.json else report(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
