"""Sampling: random variables are replaced by their values, which gives the circuit batch axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch

from tapeout.ir import (
    Array,
    Circuit,
    DiscreteVar,
    Expander,
    I,
    Index,
    IterativeMatcher,
    Scalar,
    Tag,
    Transform,
    postorder,
)
from tapeout.ir.errors import DataError, TypeMismatchError
from tapeout.ir.matching.iterative import IterativeMatcherIn
from tapeout.ir.nodes.concat import repeat_to_batch


class SampleSpec(Protocol):
    """Which samples of which groups are taken."""

    def picks(self, groups: Sequence[Circuit]) -> list[tuple[Circuit, torch.Tensor | None]]:
        """For each group of the circuit the positions taken (None for all, in order), outermost axis first."""


@dataclass(frozen=True, slots=True)
class RunDiscreteVarAllSpec:
    """Every sample of every group, in order: one leading axis a group, in the order of `groups`.

    Args:
        groups: the `probs_and_group` nodes; every group of the circuit must be among them.
        subsets: for each group the part that is taken, a slice without a step; None for all of every group.

    Raises:
        DataError: if there are not as many subsets as groups, or one is no such slice.
    """

    groups: Sequence[Circuit]
    subsets: Sequence[slice] | None = None

    def __post_init__(self) -> None:
        if self.subsets is not None and len(self.subsets) != len(self.groups):
            raise DataError(
                f"{len(self.subsets)} subsets for {len(self.groups)} groups",
                hint="give a slice for each group; slice(None) takes all of it",
            )

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
        if self.subsets is None:
            return [(group, None) for group in self.groups]
        return [(group, _part(group, subset)) for group, subset in zip(self.groups, self.subsets, strict=True)]


@dataclass(frozen=True, slots=True)
class RandomSampleSpec:
    """Random samples, by the groups' probabilities.

    Args:
        shape: the leading axes of the result; all groups are sampled along them independently.
        replace: whether a sample may occur more than once.
        seeder: the seed for each group; without it seeds come from `seed` and the group's place among those
            of the circuit.
        seed: where the random numbers start; never global state.
    """

    shape: tuple[int, ...] = ()
    replace: bool = True
    seeder: Callable[[Circuit], int] | None = None
    seed: int = 0

    def picks(self, groups: Sequence[Circuit]) -> list[tuple[Circuit, torch.Tensor | None]]:
        if any(size < 1 for size in self.shape):
            raise DataError(f"random samples of shape {list(self.shape)}", hint="every size must be at least 1")
        generator = torch.Generator().manual_seed(self.seed)
        picks = list[tuple[Circuit, torch.Tensor | None]]()
        for group in groups:
            weights = _probabilities(group)
            possible = int(torch.count_nonzero(weights))
            if not self.replace and prod(self.shape) > possible:
                raise DataError(
                    f"{prod(self.shape)} different samples of {group!r}, which has {possible}",
                    hint="ask for fewer, or let them repeat (replace=True)",
                )
            if self.seeder is not None:
                generator = torch.Generator().manual_seed(self.seeder(group))
            picks.append((group, torch.multinomial(weights, prod(self.shape), self.replace, generator=generator)))
        return picks


_UNCHANGED = Transform.ident()


@dataclass(frozen=True, slots=True)
class Sampler:
    """Replaces the random variables of circuits by samples.

    Args:
        sample_spec: which samples.
        var_matcher: which variables are sampled; the others stay.
        suffix: what is put, after a `_`, to the names of the nodes that gain the samples' axes.
        run_on_sampled: what is done to the result.
    """

    sample_spec: SampleSpec
    var_matcher: IterativeMatcherIn = DiscreteVar
    suffix: str | None = None
    run_on_sampled: Callable[[Circuit], Circuit] = _UNCHANGED

    def sample(self, circuit: Circuit) -> Circuit:
        """The circuit over the samples, with the leading axes that the spec gives it.

        Variables of one group are sampled together; different groups give an outer product under
        `RunDiscreteVarAllSpec`.

        Raises:
            DataError: if a group of the circuit is not in the spec, or cannot be sampled.
            TypeMismatchError: if a group's probabilities are computed.
            ShapeError: if a variable's values hold one of a group that is sampled before it.
        """
        matched = circuit.get(self.var_matcher)
        picked = self.sample_spec.picks(_groups([node for node in postorder(circuit) if node in matched]))
        if isinstance(self.sample_spec, RandomSampleSpec):
            return self.run_on_sampled(self._random(circuit, dict(picked), self.sample_spec.shape))
        for group, positions in reversed(picked):  # a later expansion puts its axes in front
            count = group.shape[0] if positions is None else len(positions)
            circuit = self._sample_groups(circuit, {group: positions}, (int(count),))  # type: ignore[arg-type]
        return self.run_on_sampled(_strip_tags(circuit))

    __call__ = estimate_and_sample = sample

    def _random(self, circuit: Circuit, picked: dict[Circuit, torch.Tensor | None], shape: tuple[int, ...]) -> Circuit:
        flat = _strip_tags(self._sample_groups(circuit, picked, (prod(shape),)))
        if len(shape) == 1:
            return flat
        return (flat.unflatten_axis(0, shape) if shape else flat.index(I[0])).rename(circuit.op_name)

    def _sample_groups(
        self, circuit: Circuit, picked: dict[Circuit, torch.Tensor | None], batch: tuple[int, ...]
    ) -> Circuit:
        def sampled(node: Circuit) -> Circuit:
            variable = node.cast_discrete_var()
            positions = picked[variable.probs_and_group]
            return variable.values if positions is None else Index(variable.values, (positions,), name=node.op_name)

        wanted = IterativeMatcher.all(
            self.var_matcher, lambda node: isinstance(node, DiscreteVar) and node.probs_and_group in picked
        )
        out = Expander((wanted, sampled), suffix=self.suffix)(circuit)
        return out if out.rank > circuit.rank else repeat_to_batch(out, 0, batch)

    def sample_and_evaluate(self, circuit: Circuit) -> torch.Tensor:
        return self.sample(circuit).evaluate()


def groups_of(circuit: Circuit) -> list[Circuit]:
    """The groups of the circuit's random variables, in the order in which a walk meets them."""
    return _groups(list(postorder(circuit)))


def _groups(nodes: Sequence[Circuit]) -> list[Circuit]:
    return list(dict.fromkeys(node.probs_and_group for node in nodes if isinstance(node, DiscreteVar)))


def _part(group: Circuit, subset: slice) -> torch.Tensor:
    if not isinstance(subset, slice) or subset.step is not None:
        raise DataError(f"{subset!r} is no part of a group", hint="a subset is a slice without a step")
    return torch.arange(int(group.shape[0]))[subset]  # type: ignore[arg-type]


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
