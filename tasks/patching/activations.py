"""Activation patching and ablation: parts of a model are replaced for all of their readers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from tapeout.compiler import evaluate_many
from tapeout.ir import Array, Circuit, Scalar
from tapeout.ir.errors import DataError
from tapeout.models.parts.names import NameIn, NodeName, Site, as_positions, parse_site
from tapeout.passes.base import Pass, register
from tapeout.tasks.patching.data import Data, bound, check_pair, check_rows, on_patch_data, patch_symbol, rows_of
from tapeout.tasks.patching.expose import check_one_row, expose, rebuild

With = Literal["zero", "mean", "resample"]
Values = Callable[[Circuit, Sequence[Circuit]], Sequence[Circuit]]
"""From a circuit and nodes of it to what takes their places."""


@register(
    "activation_patch",
    kind="edit",
    requires="the circuit of one row, split by head, on the symbol `tokens`",
    ensures="the parts are computed from the symbol `patch.tokens`",
)
@dataclass(frozen=True)
class ActivationPatch(Pass):
    """Gives parts of a model their values on the patch data.

    Args:
        nodes: the parts; see `activation_patch`.
        positions: the positions of parts that name none; None for all.
    """

    nodes: Any = ()
    positions: int | Sequence[int] | None = None

    def run(self, circuit: Circuit) -> Circuit:
        symbol = patch_symbol(circuit)
        sites = sites_of(circuit, self.nodes, self.positions)

        def values(exposed: Circuit, nodes: Sequence[Circuit]) -> list[Circuit]:
            patched = on_patch_data(exposed, symbol)
            return [patched[node] for node in nodes]

        return replaced(circuit, sites, values)


@register(
    "ablate",
    kind="edit",
    requires="the circuit of one row, split by head, on the symbol `tokens`",
    ensures="the parts are constants",
)
@dataclass(frozen=True)
class Ablate(Pass):
    """Gives parts of a model the value 0, or their mean over data.

    Args:
        nodes: the parts; see `activation_patch`.
        over: the data that the mean is over, position by position; None for 0.
        positions: the positions of parts that name none; None for all.
    """

    nodes: Any = ()
    over: Data | None = None
    positions: int | Sequence[int] | None = None

    def run(self, circuit: Circuit) -> Circuit:
        values = _zeros if self.over is None else _means(rows_of(self.over)["tokens"])
        return replaced(circuit, sites_of(circuit, self.nodes, self.positions), values)


def activation_patch(
    circuit: Circuit,
    nodes: NameIn | Iterable[NameIn],
    source: Data | None = None,
    baseline: Data | None = None,
    *,
    positions: int | Sequence[int] | None = None,
) -> Circuit:
    """Parts of the model have, for all of their readers, the values that they have on other inputs.

    Args:
        circuit: of one row, split by head (`models.split_circuit`), with the symbol `tokens`.
        nodes: one part or several: heads ("a9.h6"), MLPs ("m3"), the residual stream ("a5.input"), what a head reads
            ("a8.h6.q", "a8.h6.k", "a8.h6.v", "a8.h6.pattern"), keys that heads share ("a8.kv2.k"); with positions
            ("a9.h6@5") or without.
        source: the inputs that the values are from: `tokens` [N, SEQ], row i for row i of the baseline, or an
            IOIDataset. None for a circuit of one row with the symbol `patch.tokens`.
        baseline: `tokens` [N, SEQ] and `labels` [N, 2], or an IOIDataset; given exactly if `source` is.
        positions: the positions of parts that name none: an int or several, END for the last. None for all.

    Returns:
        The circuit of one row, or, with data, the circuit with a leading axis over the rows.

    Raises:
        DataError: datasets of unequal size or length, only one of them, a part that is named twice, no part.
        MatchError: a part that is not there.
        ParseError: a name that cannot be read.
        ShapeError: a position outside of the sequence.
    """
    rows = check_pair(circuit, baseline, source)
    return bound(ActivationPatch(nodes, positions)(circuit), rows)


def ablate(
    circuit: Circuit,
    nodes: NameIn | Iterable[NameIn],
    with_: With = "zero",
    over: Data | None = None,
    baseline: Data | None = None,
    *,
    positions: int | Sequence[int] | None = None,
    seed: int = 0,
) -> Circuit:
    """Parts of the model lose what they say of the input.

    Args:
        circuit: of one row, split by head (`models.split_circuit`), with the symbol `tokens`.
        nodes: which parts; see `activation_patch`.
        with_: "zero": they are 0. "mean": their mean over the rows of `over`, position by position, computed now.
            "resample": their values on rows drawn from `over`, with replacement, one for each row of the baseline;
            without data the circuit of one row takes them as `patch.tokens`.
        over: `tokens` [M, SEQ], or an IOIDataset; for "mean", and for "resample" if `baseline` is given.
        baseline: `tokens` [N, SEQ] and `labels` [N, 2], or an IOIDataset; None for a circuit of one row.
        positions: the positions of parts that name none; None for all.
        seed: of the draw.

    Raises:
        DataError: an unknown `with_`, data that is missing or does not fit, a part that is named twice.
        MatchError, ParseError, ShapeError: see `activation_patch`.
    """
    if with_ not in get_args(With):
        raise DataError(f"with_ is {with_!r}", hint='use "zero", "mean" or "resample"')
    if (over is None) != (with_ == "zero" or (with_ == "resample" and baseline is None)):
        raise DataError(
            f"ablation with {with_!r} was {'not ' if over is None else ''}given data to take values from",
            hint='give over= for "mean", and for "resample" together with baseline=; none for "zero"',
        )
    if with_ == "resample":
        return activation_patch(circuit, nodes, _drawn(over, baseline, seed), baseline, positions=positions)
    rows = None if baseline is None else check_rows(circuit, baseline)
    return bound(Ablate(nodes, over, positions)(circuit), rows)


def sites_of(circuit: Circuit, nodes: Any, positions: int | Sequence[int] | None) -> list[Site]:
    """The sites that are meant by names, their positions counted from 0.

    Raises:
        DataError: if there are none, or two have positions of a part in common.
        ParseError: if a name cannot be read.
    """
    given = [nodes] if isinstance(nodes, str | NodeName | Site) or not isinstance(nodes, Iterable) else list(nodes)
    at = as_positions(positions)
    length = int(check_one_row(circuit).shape[0])  # type: ignore[arg-type]
    sites = [site if site.positions is not None else Site(site.name, at) for site in map(parse_site, given)]
    sites = [site.counted_from_0(length) for site in sites]
    if not sites:
        raise DataError("no parts were given", hint='give at least one, such as "a9.h6"')
    by_name: dict[NodeName, list[Site]] = {}
    for site in sites:
        others = by_name.setdefault(site.name, [])
        if any(site.overlaps(other) for other in others):
            raise DataError(
                f"{site.name} is named twice", hint="name each part once, its positions together: a9.h6@2,5"
            )
        others.append(site)
    return sites


def replaced(circuit: Circuit, sites: Sequence[Site], values: Values) -> Circuit:
    """The circuit with others in the places of the sites' nodes; `values` is given these as they were."""
    exposed = expose(circuit, sites)
    nodes = [node for site in sites for node in exposed.nodes[site]]
    new = dict(zip(nodes, values(exposed.circuit, nodes), strict=True))
    return rebuild(exposed.circuit, lambda old, over, _: new.get(old, over))[exposed.circuit]


def _zeros(_: Circuit, nodes: Sequence[Circuit]) -> list[Circuit]:
    return [Scalar(0.0, node.shape, f"zero.{node.name}") for node in nodes]


def _means(tokens: torch.Tensor) -> Values:
    def means(_: Circuit, nodes: Sequence[Circuit]) -> list[Circuit]:
        dtype = torch.float64 if nodes[0].torch_dtype is torch.float64 else torch.float32
        found = evaluate_many(nodes, {"tokens": tokens}, dtype=dtype)
        return [
            Array(value.mean(0).to(node.torch_dtype), f"mean.{node.name}")
            for node, value in zip(nodes, found, strict=True)
        ]

    return means


def _drawn(over: Data | None, baseline: Data | None, seed: int) -> Data | None:
    if over is None or baseline is None:
        return None
    tokens, count = rows_of(over)["tokens"], len(rows_of(baseline)["tokens"])
    generator = torch.Generator().manual_seed(seed)
    return {"tokens": tokens[torch.randint(len(tokens), (count,), generator=generator)]}
