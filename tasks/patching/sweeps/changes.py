"""The changes that variants make: of what is written to the residual stream, at one of its cuts.

Whatever part of a head takes another value, what follows is that its attention gives another sum of
values, and that the layer writes something else to the stream. That difference is computed here, for all
heads of a layer together; what follows from it is the same for all variants and done in `sweep`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from tapeout.ir import Circuit, GeneralFunction
from tapeout.ir.nodes.kernels import Linear
from tapeout.models.parts.names import NodeName
from tapeout.tasks.patching.sweeps.compiled import Pieces
from tapeout.tasks.patching.sweeps.cuts import AttentionLayer, Cut
from tapeout.tasks.patching.sweeps.groups import Job, cut_of
from tapeout.tasks.patching.sweeps.heads import attend, outputs
from tapeout.tasks.patching.sweeps.subgraphs import Values, Window
from tapeout.tasks.patching.sweeps.variants import Variant, With


@dataclass(frozen=True, slots=True)
class Rows:
    """Values at neighbouring positions.

    Attributes:
        value: [..., POSITIONS, HIDDEN].
        first: the first of the positions.
    """

    value: torch.Tensor
    first: int

    @property
    def stop(self) -> int:
        return self.first + self.value.shape[-2]

    def window(self, start: int, stop: int) -> torch.Tensor:
        """The values from one position to another, zero where there are none."""
        low, high = max(start, self.first), min(stop, self.stop)
        inside = self.value.narrow(-2, low - self.first, max(0, high - low)) if high > low else self.value[..., :0, :]
        if (low, high) == (start, stop):
            return inside
        out = self.value.new_zeros(*self.value.shape[:-2], stop - start, self.value.shape[-1])
        if high > low:
            out[..., low - start : high - start, :] = inside
        return out


class Changes:
    """Makes changes for some prompts.

    Args:
        pieces: the compiled parts of the model.
        base: values on the baseline data, the prompts first.
        instead: for each way of changing, the values that are taken instead.
        first: the first position at which anything changes.
    """

    def __init__(self, pieces: Pieces, base: Values, instead: Mapping[With, Values], first: int) -> None:
        self.pieces, self.anatomy = pieces, pieces.anatomy
        self.base, self.instead, self.first = base, instead, first
        self.prompts = next(iter(base.values())).shape[0]
        self._written: dict[tuple[object, ...], Rows] = {}
        self._last: tuple[tuple[object, ...], Rows] | None = None

    def of(self, job: Job, variants: Sequence[Variant], start: int) -> torch.Tensor:
        """What the variants change at the job's cut: [VARIANTS, PROMPTS, HIDDEN] or with positions from `start` on."""
        into = job.variant.into
        changes = self._parts(job, variants) if into is None else self._edges(job, into, variants)
        cut = self.anatomy.cuts[job.cut]
        if cut.position is None:
            return torch.stack([each.window(start, self.anatomy.length) for each in changes])
        place = cut.position + self.anatomy.length
        return torch.stack([each.window(place, place + 1)[..., 0, :] for each in changes])

    # -- a part, for all of its readers

    def _parts(self, job: Job, variants: Sequence[Variant]) -> list[Rows]:
        return [self._part(job, variant) for variant in variants]

    def _part(self, job: Job, variant: Variant) -> Rows:
        what = variant.what
        if what.part in ("k", "v"):
            if self._last is None or self._last[0] != job.key:
                self._last = job.key, self._head_parts(variant)
            return _of_heads(self._last[1], what, self.anatomy.layer(what))
        return self.written(what, variant.with_, variant.positions)

    def written(self, what: NodeName, with_: With, positions: tuple[int, ...] | None) -> Rows:
        """The change of what a part writes to the stream, [PROMPTS, POSITIONS, HIDDEN], at some positions or all."""
        key = (what.kind, what.layer, what.part, with_)
        if key not in self._written:
            self._written[key] = self._all_written(what, with_)
        rows = self._written[key]
        if what.kind == "head":
            rows = _of_heads(rows, what, self.anatomy.layer(what))
        return rows if positions is None else self._only(rows, positions)

    def _only(self, rows: Rows, positions: tuple[int, ...]) -> Rows:
        """The rows, zero at other positions."""
        places = sorted({place % self.anatomy.length for place in positions})
        low, high = places[0], places[-1] + 1
        value = rows.window(low, high)
        if len(places) < high - low:
            keep = torch.zeros(high - low, 1, dtype=value.dtype, device=value.device)
            keep[[place - low for place in places]] = 1
            value = value * keep
        return Rows(value, low)

    def _all_written(self, what: NodeName, with_: With) -> Rows:
        if what.kind == "head":
            return self._head_parts(Variant(what, None, None, with_))
        cut = self.anatomy.cuts[cut_of(what, self.anatomy)]
        nodes = (cut.node,) if what.is_residual else cut.added
        shift = 0.0 if what.is_residual or with_ == "patch" else _bias(nodes, self.pieces)
        base = torch.stack([self.base[node] for node in nodes]).sum(0) - shift
        other = torch.zeros_like(base)
        if with_ != "zero":
            other = torch.stack([self.instead[with_][node] for node in nodes]).sum(0) - shift
        value = other - base
        return self._cut_rows(cut, value)

    def _cut_rows(self, cut: Cut, value: torch.Tensor) -> Rows:
        if cut.position is None:
            return Rows(value[:, self.first :], self.first)
        return Rows(value[:, None], cut.position + self.anatomy.length)

    # -- heads

    def _head_parts(self, variant: Variant) -> Rows:
        """What each head of a layer writes if a part of it changes: [PROMPTS, HEADS, POSITIONS, HIDDEN]."""
        what = variant.what
        layer = self.anatomy.layer(what)
        prompts = torch.arange(self.prompts, device=self.pieces.device)
        if what.part is None:
            first = self.first if layer.rows == self.anatomy.length else self._place(layer)
            skip = first if layer.rows == self.anatomy.length else 0
            base = self.base[layer.node][:, :, skip:]
            other = torch.zeros_like(base) if variant.with_ == "zero" else self.instead[variant.with_][layer.node]
            change = Rows((other[:, :, skip:] if variant.with_ != "zero" else other) - base, first)
        else:
            change = self._attended(layer, self._taken(layer, variant), prompts)
        return self._outputs(layer, change)

    def _place(self, layer: AttentionLayer) -> int:
        """The position of the only query."""
        return (self.anatomy.cuts[layer.cut].position or 0) % self.anatomy.length

    def _taken(self, layer: AttentionLayer, variant: Variant) -> Mapping[str, Rows]:
        """The queries, keys or values that the heads take instead.

        Positions of queries are picked afterwards, since each query has an output of its own.
        """
        part, places = variant.what.part, variant.positions
        length = self.anatomy.length
        out = dict[str, Rows]()
        for name in ("q", "k") if part == "pattern" else (str(part),):
            node = layer.node.children["qkv".index(name)]
            base = self.base[node]
            new = torch.zeros_like(base) if variant.with_ == "zero" else self.instead[variant.with_][node]
            new = new.expand_as(base)
            if part in ("k", "v") and places is not None:
                keep = torch.zeros(length, 1, dtype=torch.bool, device=base.device)
                keep[[place % length for place in places]] = True
                new = torch.where(keep, new, base)
            first = self.first if base.shape[-2] == length and not (part == "pattern" and name == "k") else 0
            out[name] = Rows(new[..., first:, :], first)
        return out

    def _attended(self, layer: AttentionLayer, new: Mapping[str, Rows], prompts: torch.Tensor) -> Rows:
        """The change of each head's weighted sum of values: [ROWS, HEADS, POSITIONS, VALUE].

        Args:
            layer: the layer.
            new: queries, keys and values in place of the prompts' own, at some positions.
            prompts: the prompt of each row.
        """
        length = self.anatomy.length
        low, high, first = 0, layer.rows, self._place(layer)
        if layer.rows == length:
            low = first = self._earliest(new)
            high = new["q"].stop if set(new) == {"q"} else length
        operands = [
            _with_rows(self.base[node].index_select(0, prompts), new.get(name))
            for name, node in zip("qkv", layer.node.children[:3], strict=True)
        ]
        operands[0] = operands[0][:, :, low:high]
        allowed = layer.allowed(length)[low:high].to(self.pieces.device, operands[0].dtype)
        after = attend(self.pieces, layer)(*operands, allowed)
        return Rows(after - self.base[layer.node].index_select(0, prompts)[:, :, low:high], first)

    def _earliest(self, new: Mapping[str, Rows]) -> int:
        """The first query that sees a change: in a causal model the position of the change."""
        return max(self.first, min(rows.first for rows in new.values())) if self.anatomy.is_causal else 0

    def _outputs(self, layer: AttentionLayer, change: Rows) -> Rows:
        return Rows(outputs(self.pieces, layer)(change.value), change.first)

    # -- edges

    def _edges(self, job: Job, into: NodeName, variants: Sequence[Variant]) -> list[Rows]:
        """What changes at the job's cut if senders change in the eyes of one receiver."""
        with_, positions = job.variant.with_, job.variant.positions
        if into.is_residual:
            return [self.written(variant.what, with_, positions) for variant in variants]
        senders = list(dict.fromkeys(variant.what for variant in variants))
        sent = [self.written(sender, with_, positions) for sender in senders]
        before = self.anatomy.cuts[job.cut - 1]
        prompts = torch.arange(self.prompts, device=self.pieces.device).repeat(len(senders))
        if into.kind == "mlp":
            rows = self._rewritten(job.cut, sent, prompts)
            per_sender = rows.value.unflatten(0, (len(senders), self.prompts))
            return [Rows(per_sender[senders.index(variant.what)], rows.first) for variant in variants]
        layer = self.anatomy.layer(into)
        new = dict[str, Rows]()
        for part in "qkv" if into.part is None else into.part:
            node = layer.node.children["qkv".index(part)]
            window = self._window(sent, layer if part == "q" else None)
            x = self._seen(before, sent, window)
            new[part] = Rows(self.pieces.between(before.node, node)(x, self.base, prompts, window), window.start)
        rows = self._outputs(layer, self._attended(layer, new, prompts))
        per_head = rows.value.unflatten(0, (len(senders), self.prompts))
        number = {sender: i for i, sender in enumerate(senders)}
        return [Rows(per_head[number[v.what], :, _head_of(v.into)], rows.first) for v in variants]

    def _window(self, sent: Sequence[Rows], only: AttentionLayer | None) -> Window:
        """The positions at which a receiver reads something else."""
        length = self.anatomy.length
        if not self.anatomy.is_causal:
            return Window(0, length, length)
        if only is not None and only.rows != length:
            return Window(length - 1, length, length)
        return Window(min(rows.first for rows in sent), max(rows.stop for rows in sent), length)

    def _seen(self, cut: Cut, sent: Sequence[Rows], window: Window) -> torch.Tensor:
        """The stream as the receiver sees it: [SENDERS * PROMPTS, POSITIONS, HIDDEN]."""
        if cut.position is not None:
            place = cut.position + self.anatomy.length
            change = torch.stack([rows.window(place, place + 1)[..., 0, :] for rows in sent])
            return (self.base[cut.node] + change).flatten(0, 1)
        change = torch.stack([rows.window(window.start, window.stop) for rows in sent])
        return (self.base[cut.node][:, window.start : window.stop] + change).flatten(0, 1)

    def _rewritten(self, number: int, sent: Sequence[Rows], prompts: torch.Tensor) -> Rows:
        """The change of what a whole layer writes: [SENDERS * PROMPTS, POSITIONS, HIDDEN]."""
        before, after = self.anatomy.cuts[number - 1], self.anatomy.cuts[number]
        length = self.anatomy.length
        start = min(rows.first for rows in sent) if self.anatomy.is_causal else 0
        window = Window(start, length, length)
        x = self._seen(before, sent, window)
        out = self.pieces.between(before.node, after.node)(x, self.base, prompts, window)
        if after.position is None:
            base = self.base[after.node].index_select(0, prompts)[:, start:]
            seen = x - self.base[before.node].index_select(0, prompts)[:, start:]
            return Rows(out - base - seen, start)
        if before.position is None:
            seen = (x - self.base[before.node].index_select(0, prompts)[:, start:])[:, after.position]
        else:
            seen = x - self.base[before.node].index_select(0, prompts)
        base = self.base[after.node].index_select(0, prompts)
        return Rows((out - base - seen)[:, None], after.position + length)


def _with_rows(own: torch.Tensor, new: Rows | None) -> torch.Tensor:
    """A tensor [..., POSITIONS, SIZE] with some of its positions replaced."""
    if new is None or new.value.shape == own.shape:
        return own if new is None else new.value
    return torch.cat([own[..., : new.first, :], new.value, own[..., new.stop :, :]], -2)


def _of_heads(rows: Rows, what: NodeName, layer: AttentionLayer) -> Rows:
    """Of what all heads of a layer write, what one writes, or the group that shares a key."""
    if what.kind == "head":
        return Rows(rows.value[:, what.head], rows.first)
    return Rows(rows.value.unflatten(1, (layer.groups, layer.heads // layer.groups))[:, what.head].sum(1), rows.first)


def _head_of(name: NodeName | None) -> int:
    return 0 if name is None or name.head is None else name.head


def _bias(nodes: Sequence[Circuit], pieces: Pieces) -> torch.Tensor | float:
    """The part of what an MLP writes that depends on nothing."""
    total: torch.Tensor | float = 0.0
    for node in nodes:
        if not node.free_symbols:
            total = total + pieces.constant(node)
        elif isinstance(node, GeneralFunction) and isinstance(node.spec, Linear) and len(node.children) > 2:
            total = total + pieces.constant(node.children[2])
    return total
