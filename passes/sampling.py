"""Sampling: random variables are replaced by their values, which gives the circuit batch axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch

from tapeout.ir import (
    Array,
    Circuit,
    DiscreteVar,
    I,
    Index,
    Scalar,
    Tag,
    postorder,
    replace_nodes,
)
from tapeout.ir.concat import repeat_to_batch
from tapeout.ir.errors import DataError, TypeMismatchError


class SampleSpec(Protocol):
    """Which samples of which groups are taken."""

    def picks(self, groups: Sequence[Circuit]) -> list[tuple[Circuit, torch.Tensor | None]]:
        """For each group of the circuit the positions taken (None for all, in order), outermost axis first."""


@dataclass(frozen=True, slots=True)
class RunDiscreteVarAllSpec:
    """Every sample of every group, in order: one leading axis a group, in the order of `groups`.

    Args:
        groups: the `probs_and_group` nodes; every group of the circuit must be among them.
    """

    groups: Sequence[Circuit]

    @staticmethod
    def create_full_from_circuits(*circuits: Circuit) -> RunDiscreteVarAllSpec:
        """The spec with all groups of the circuits, in the order in which a walk meets them."""
        return RunDiscreteVarAllSpec(list(dict.fromkeys(group for circuit in circuits for group in groups_of(circuit))))

    def picks(self, groups: Sequence[Circuit]) -> list[tuple[Circuit, torch.Tensor | None]]:
        unlisted = [group for group in groups if group not in self.groups]
        if unlisted:
            raise DataError(
                f"{len(unlisted)} groups of the circuit's variables are not listed: {', '.join(map(repr, unlisted))}",
                hint="list every variable's probs_and_group, or use "
                "RunDiscreteVarAllSpec.create_full_from_circuits(circuit)",
            )
        return [(group, None) for group in self.groups]


@dataclass(frozen=True, slots=True)
class RandomSampleSpec:
    """Random samples, by the groups' probabilities.

    Args:
        shape: the leading axes of the result; all groups are sampled along them independently.
        seed: where the random numbers start; never global state. A group's samples depend on it and on
            the group's place among those of the circuit.
    """

    shape: tuple[int, ...] = ()
    seed: int = 0

    def picks(self, groups: Sequence[Circuit]) -> list[tuple[Circuit, torch.Tensor | None]]:
        if any(size < 1 for size in self.shape):
            raise DataError(f"random samples of shape {list(self.shape)}", hint="every size must be at least 1")
        generator = torch.Generator().manual_seed(self.seed)
        return [
            (group, torch.multinomial(_probabilities(group), prod(self.shape), replacement=True, generator=generator))
            for group in groups
        ]


@dataclass(frozen=True, slots=True)
class Sampler:
    """Replaces the random variables of circuits by samples.

    Args:
        var_sample_spec: which samples.
    """

    var_sample_spec: SampleSpec

    def sample(self, circuit: Circuit) -> Circuit:
        """The circuit over the samples, with the leading axes that the spec gives it.

        Variables of one group are sampled together; different groups give an outer product under
        `RunDiscreteVarAllSpec`.

        Raises:
            DataError: if a group of the circuit is not in the spec, or cannot be sampled.
            TypeMismatchError: if a group's probabilities are computed.
            ShapeError: if a variable's values hold one of a group that is sampled before it.
        """
        groups = groups_of(circuit)
        picked = self.var_sample_spec.picks(groups)
        if isinstance(self.var_sample_spec, RandomSampleSpec):
            return self._random(circuit, dict(picked), self.var_sample_spec.shape)
        for group, positions in reversed(picked):  # a later expansion puts its axes in front
            circuit = _sample_groups(circuit, {group: positions}, (int(group.shape[0]),))  # type: ignore[arg-type]
        return _strip_tags(circuit)

    def _random(self, circuit: Circuit, picked: dict[Circuit, torch.Tensor | None], shape: tuple[int, ...]) -> Circuit:
        flat = _strip_tags(_sample_groups(circuit, picked, (prod(shape),)))
        if len(shape) == 1:
            return flat
        return (flat.unflatten_axis(0, shape) if shape else flat.index(I[0])).rename(circuit.op_name)

    def sample_and_evaluate(self, circuit: Circuit) -> torch.Tensor:
        return self.sample(circuit).evaluate()


def groups_of(circuit: Circuit) -> list[Circuit]:
    """The groups of the circuit's random variables, in the order in which a walk meets them."""
    return list(dict.fromkeys(node.probs_and_group for node in postorder(circuit) if isinstance(node, DiscreteVar)))


def _sample_groups(circuit: Circuit, picked: dict[Circuit, torch.Tensor | None], batch: tuple[int, ...]) -> Circuit:
    def sampled(node: Circuit) -> Circuit | None:
        if not isinstance(node, DiscreteVar) or node.probs_and_group not in picked:
            return None
        positions = picked[node.probs_and_group]
        return node.values if positions is None else Index(node.values, (positions,), name=node.op_name)

    rank = circuit.rank
    out = replace_nodes(circuit, sampled)
    return out if out.rank > rank else repeat_to_batch(out, 0, batch)


def _probabilities(group: Circuit) -> torch.Tensor:
    node = group.node if isinstance(group, Tag) else group
    if isinstance(node, Scalar):
        weights = torch.full([int(size) for size in node.shape], node.value, dtype=torch.float64)  # type: ignore[arg-type]
    elif isinstance(node, Array):
        weights = node.value.to("cpu", torch.float64)
    else:
        raise _computed(group)
    if not bool((weights >= 0).all() and 0 < weights.sum() < torch.inf):
        raise DataError(f"{group!r} holds no probabilities", hint="none is negative, and their sum is positive")
    return weights


def _computed(group: Circuit) -> TypeMismatchError:
    return TypeMismatchError(
        f"the probabilities {group!r} are computed, not constant",
        hint="use an Array or a Scalar, or evaluate them first",
    )


def _strip_tags(circuit: Circuit) -> Circuit:
    """Without tags, if no random variable is left whose group they could tell apart."""
    if any(isinstance(node, DiscreteVar) for node in postorder(circuit)):
        return circuit
    return circuit.update(Tag, lambda tag: tag.children[0])
