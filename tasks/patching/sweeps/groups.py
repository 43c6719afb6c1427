"""Where a change shows, what it takes, and what it reads: the rules of each kind of part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tapeout.ir import Circuit
from tapeout.models.parts.names import NodeName
from tapeout.tasks.patching.sweeps.cuts import Anatomy
from tapeout.tasks.patching.sweeps.variants import Variant


@dataclass(frozen=True, slots=True)
class Job:
    """Changes that are made together.

    Attributes:
        cut: the number of the cut at which they show.
        variant: the first of the variants; the others differ from it in what `Changes` picks.
        key: what tells jobs apart.
    """

    cut: int
    variant: Variant
    key: tuple[object, ...]


def job_of(variant: Variant, anatomy: Anatomy) -> Job:
    """The job that a variant belongs to."""
    what, into = variant.what, variant.into
    target = what if into is None else into
    cut = cut_of(target, anatomy)
    if into is not None:
        return Job(cut, variant, ("edge", into.kind, into.layer, into.part, variant.positions, variant.with_))
    at = variant.positions if what.part in ("k", "v") else None
    return Job(cut, variant, ("head" if what.kind == "kv" else what.kind, what.layer, what.part, at, variant.with_))


def cut_of(name: NodeName, anatomy: Anatomy) -> int:
    """The cut at which a change of a part shows."""
    match name.kind:
        case "attn_input":
            return anatomy.cut_after(f"a{name.layer}") - 1
        case "mlp_input":
            return anatomy.cut_after(f"m{name.layer}") - 1
        case "head" | "kv":
            return anatomy.cut_after(f"a{name.layer}")
        case "mlp":
            return anatomy.cut_after(f"m{name.layer}")
    return 0 if name.kind == "embeds" else len(anatomy.cuts) - 1


def taken_nodes(name: NodeName, anatomy: Anatomy) -> Sequence[Circuit]:
    """The nodes whose values a change of a part takes from elsewhere."""
    if name.kind in ("head", "kv"):
        layer = anatomy.layer(name)
        operands = {"q": (0,), "k": (1,), "v": (2,), "pattern": (0, 1)}
        return [layer.node] if name.part is None else [layer.node.children[i] for i in operands[name.part]]
    cut = anatomy.cuts[cut_of(name, anatomy)]
    return [cut.node] if name.is_residual else cut.added


def read_nodes(job: Job, variant: Variant, anatomy: Anatomy) -> Sequence[Circuit]:
    """The nodes whose values on the run that is changed are read to make a change."""
    looked_into = variant.into or variant.what
    nodes = [*taken_nodes(variant.what, anatomy), anatomy.cuts[job.cut].node]
    if variant.into is not None and not looked_into.is_residual:
        nodes.append(anatomy.cuts[job.cut - 1].node)
    if looked_into.kind in ("head", "kv") and (looked_into.part or variant.into):
        layer = anatomy.layer(looked_into)
        nodes += [layer.node, *layer.node.children[:3]]
    return nodes
