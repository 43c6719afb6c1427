"""Path patching: along given paths the patch data reaches the metric, along all others the baseline data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

from tapeout.ir import Circuit, IterativeMatcher, Matcher, new_traversal
from tapeout.ir.errors import DataError, MatchError
from tapeout.models.parts.names import NodeName, Site, as_positions
from tapeout.models.parts.places import find, locate, node_names, present
from tapeout.passes import substitute_all_modules
from tapeout.passes.base import Pass, register
from tapeout.tasks.patching.data import Data, bound, check_pair, on_patch_data, patch_symbol
from tapeout.tasks.patching.expose import expose
from tapeout.tasks.patching.routes import Arrival, Path, arrivals_of, matcher_of, parse_path, survey, tree_of

Between = Literal["frozen", "recomputed"]
PathIn = Any
"""A path: "a5.h5 -> a8.h6.q -> final.input", a tuple of such names, a `Path`, or an IterativeMatcher."""

_SCALE = Matcher("ln.rsqrt", "rms.rsqrt")
"""What a norm divides by, its inverse: the part of it that is not linear."""


@register(
    "path_patch",
    kind="edit",
    requires="the circuit of one row, split by head, on the symbol `tokens`",
    ensures="what the senders of the paths send along them is computed from the symbol `patch.tokens`",
)
@dataclass(frozen=True)
class PathPatch(Pass):
    """Computes what flows along paths from the patch data, and everything else from the baseline data.

    Args:
        paths: one path, or a list of paths; see `path_patch`.
        between: "frozen" or "recomputed"; see `path_patch`.
        t: the positions of senders that name none.
        freeze_norm: whether norms keep the scale of the baseline run.
        allow_missing: whether a path may match nothing.
    """

    paths: Any = ()
    between: Between = "frozen"
    t: int | Sequence[int] | None = None
    freeze_norm: bool = False
    allow_missing: bool = False

    def run(self, circuit: Circuit) -> Circuit:
        symbol = patch_symbol(circuit)
        _check_options(self)
        if self.freeze_norm:
            circuit = _norms_opened(circuit)
        given = _as_list(self.paths)
        length = int(symbol.shape[0])  # type: ignore[arg-type]
        named = [_with_positions(parse_path(path), self.t, length) for path in given if _is_named(path)]
        circuit, matcher = _routes_by_name(circuit, named, self.between, self.allow_missing)
        matchers = [IterativeMatcher(path) for path in given if not _is_named(path)]
        for each in matchers:
            if not self.allow_missing and not circuit.are_any_found(each):
                raise MatchError(
                    f"the path {each!r} matches nothing below {circuit!r}",
                    hint="look with circuit.print() at what is on the way, or pass allow_missing=True",
                )
        matcher = IterativeMatcher(matcher, *matchers)
        if self.freeze_norm:
            matcher = IterativeMatcher.all(matcher, new_traversal(term_early_at=_SCALE))
        if matchers or self.between == "frozen":
            _check_apart(circuit, matcher)
        patched = on_patch_data(circuit, symbol)
        # Below a node there may be other paths' senders: it is another node then, and all of it is replaced.
        return circuit.update(matcher, lambda node: patched.get(node) or node.update("tokens", lambda _: symbol))


def path_patch(
    circuit: Circuit,
    paths: PathIn | list[PathIn],
    baseline: Data | None = None,
    patch: Data | None = None,
    *,
    between: Between = "frozen",
    t: int | Sequence[int] | None = None,
    freeze_norm: bool = False,
    allow_missing: bool = False,
) -> Circuit:
    """What reaches the output along the paths has its value on the patch data, everything else on the baseline data.

    Exact: a copy of the circuit in which the senders, where they are read along the paths, are computed from
    `patch.tokens`; whatever lies on the paths is recomputed, norms included. The routes of several paths are united.

    Args:
        circuit: of one row, split by head (`models.split_circuit`), with the symbol `tokens`.
        paths: one path, or a list of paths. A path is

            - names in the direction of data flow, `"a5.h5 -> a8.h6.q -> final.input"` or
              `("a5.h5", "a8.h6.q", "final.input")`, see `tapeout.models.parts.names`: the sender, parts on the
              way, the last receiver. From there to the output everything is recomputed. A sender alone is replaced
              for all of its readers;
            - an IterativeMatcher of the nodes to be replaced, on the ways from the output on which it matches them.
        baseline: `tokens` [N, SEQ] and `labels` [N, 2], or an IOIDataset; None for a circuit of one row.
        patch: `tokens` [N, SEQ], row i for row i of the baseline, or an IOIDataset.
        between: what is between the parts that a path names. "frozen": heads and MLPs that the path does not name
            have their baseline values, so that only the direct way through the residual stream counts.
            "recomputed": every way counts.
        t: positions of the senders that name none themselves (`a9.h6@5` does): an int or several, END for the last.
        freeze_norm: norms keep the scale that they have on the baseline data, so that direct effects add up.
        allow_missing: whether a path may match nothing.

    Returns:
        Without data the circuit of one row, with the symbols `tokens` and `patch.tokens`. With data the circuit with
        a leading axis over the rows: `evaluate()` gives [N].

    Raises:
        DataError: datasets of unequal size or length, only one of them, or paths that overlap.
        MatchError: a part that is not there, a path that matches nothing or runs against the direction of data flow.
        ParseError: a name that cannot be read.
        ShapeError: a position outside of the sequence.
    """
    rows = check_pair(circuit, baseline, patch)
    return bound(PathPatch(paths, between, t, freeze_norm, allow_missing)(circuit), rows)


def _is_named(path: PathIn) -> bool:
    return isinstance(path, str | tuple | list | Path)


def _as_list(paths: Any) -> list[PathIn]:
    """One path as a list; several as they are. A tuple is one path."""
    return [paths] if isinstance(paths, str | tuple | Path) or not isinstance(paths, Iterable) else list(paths)


def _check_options(options: PathPatch) -> None:
    if options.between not in get_args(Between):
        raise DataError(f"between is {options.between!r}", hint='use "frozen" or "recomputed"')
    given = _as_list(options.paths)
    if not given:
        raise MatchError("no paths were given", hint='give at least one, such as "a9.h6 -> final.input"')
    if options.t is not None and not all(map(_is_named, given)):
        raise DataError(
            "t was given, and some paths are matchers",
            hint="let the matcher match the nodes of the positions, a9_h6_t5, or give the path by names",
        )


def _with_positions(path: Path, t: int | Sequence[int] | None, length: int) -> Path:
    """The path with the positions of its sender filled in, and all positions counted from 0."""
    sender, *receivers = path.steps
    if sender.positions is None and t is not None:
        sender = Site(sender.name, as_positions(t))
    return Path(tuple(site.counted_from_0(length) for site in (sender, *receivers)))


def _norms_opened(circuit: Circuit) -> Circuit:
    opened = substitute_all_modules(circuit)
    if not opened.are_any_found(_SCALE):
        raise MatchError(
            f"there is no norm below {circuit!r} whose scale could be frozen",
            hint="norms are found by their scale, ln.rsqrt or rms.rsqrt",
        )
    return opened


# -- paths by names


def _routes_by_name(
    circuit: Circuit, paths: Sequence[Path], between: Between, allow_missing: bool
) -> tuple[Circuit, IterativeMatcher]:
    """The circuit in which all parts named are nodes, and the matcher of the paths' senders."""
    for path in paths:
        _check_direction(path)
        if not allow_missing:
            _check_positions(path, between)
    if allow_missing:
        there = set(present(circuit, {site.name for path in paths for site in path.steps}))
        paths = [path for path in paths if all(site.name in there for site in path.steps)]
    tree = tree_of(paths)
    _check_tree(tree)
    exposed = expose(circuit, [site for path in paths for site in path.steps])
    stops = _Stops(circuit, exposed.circuit) if between == "frozen" else None
    barred: dict[tuple[Site, Site], frozenset[Circuit]] = {
        (sender, receiver): stops.between(sender.name, receiver.name) if stops else frozenset()
        for path in paths
        for sender, receiver in pairwise(path.steps)
    }
    matcher = matcher_of(tree, exposed.nodes, barred)
    if not allow_missing:
        reached = survey(exposed.circuit, matcher).reached
        for arrival in arrivals_of(tree)[1:]:
            if arrival not in reached:
                raise _unreached(circuit, arrival, tree)
    return exposed.circuit, matcher


class _Stops:
    """The nodes that a direct way does not pass: the outputs of heads and MLPs."""

    def __init__(self, circuit: Circuit, exposed: Circuit) -> None:
        components = [name for name in node_names(circuit) if name.kind in ("head", "mlp")]
        self.circuit, self.nodes = circuit, {name: place.node for name, place in locate(exposed, components).items()}

    def between(self, sender: NodeName, receiver: NodeName) -> frozenset[Circuit]:
        """All but those that the sender is a part of: what is in a head leaves it through its output.

        And but the receiver itself: where positions of it are meant it is met below them.
        """
        passed = {self.nodes[name] for name in (*self._owners(sender), receiver) if name in self.nodes}
        return frozenset(self.nodes.values()) - passed

    def _owners(self, name: NodeName) -> list[NodeName]:
        if name.kind == "head" and name.part is not None:
            return [name.owner]
        if name.kind != "kv":
            return []
        shared = find(self.circuit, name).node
        heads = [other for other in self.nodes if other.kind == "head" and other.layer == name.layer]
        reads = locate(self.circuit, [NodeName("head", head.layer, head.head, name.part) for head in heads])
        return [read.owner for read, place in reads.items() if place.node is shared]


# -- what can be wrong with paths


def _check_direction(path: Path) -> None:
    for sender, receiver in pairwise(path.steps):
        if sender.name.order >= receiver.name.order:
            later = sender.name.order > receiver.name.order
            raise MatchError(
                f"no data flows from {sender.name} to {receiver.name}: "
                f"{'it is computed later' if later else 'neither is computed from the other'}",
                facts=[f"path: {path}"],
                hint="a path names its parts in the direction of data flow, the sender first: a5.h5 -> a8.h6.q",
            )


def _check_positions(path: Path, between: Between) -> None:
    """Raises MatchError if no position of a receiver sees one of the part before it; positions are counted from 0."""
    for sender, receiver in pairwise(path.steps):
        if sender.positions is None or receiver.positions is None:
            continue
        across = between == "recomputed" or (receiver.name.kind == "head" and receiver.name.part not in ("q", "k", "v"))
        if min(sender.positions) > max(receiver.positions):
            why = "later positions are not read by earlier ones"
        elif not across and {*sender.positions}.isdisjoint(receiver.positions):
            why = "the direct way goes from a position to itself"
        else:
            continue
        raise MatchError(
            f"no data flows from {sender} to {receiver}: {why}",
            facts=[f"path: {path}"],
            hint='name positions that go together, or pass between="recomputed", or allow_missing=True',
        )


def _check_tree(tree: Arrival) -> None:
    """Raises DataError for paths of which one is in another."""
    for arrival in arrivals_of(tree):
        inside = [path for below in arrivals_of(arrival)[1:] for path in below.paths] if arrival.paths else []
        again = [*arrival.paths[1:], *inside]
        if again:
            raise _overlap(f"{arrival.paths[0]}", f"{again[0]}")
        ends = [below for below in arrival.below.values() if below.paths]
        for number, one in enumerate(ends):
            for other in ends[:number]:
                if one.site and other.site and one.site.overlaps(other.site):
                    raise _overlap(f"{other.paths[0]}", f"{one.paths[0]}")


def _check_apart(circuit: Circuit, matcher: IterativeMatcher) -> None:
    """Raises DataError if a route goes on below a node that is replaced."""
    for upper, lower in survey(circuit, matcher).below_one_another:
        raise _overlap(f"the path to {upper.name or upper!r}", f"the one through it to {lower.name or lower!r}")


def _overlap(upper: str, lower: str) -> DataError:
    return DataError(
        f"two paths overlap: {upper} and {lower}",
        hint="what is replaced has its value on the patch data, all of it: leave out the path that goes on through it, "
        "or the positions that both have; activation_patch replaces several parts for all of their readers",
    )


def _unreached(circuit: Circuit, arrival: Arrival, tree: Arrival) -> MatchError:
    site, above = arrival.site, next(each for each in arrivals_of(tree) if arrival in each.below.values())
    paths = [path for each in arrivals_of(arrival) for path in each.paths]
    facts = [f"path: {paths[0]}"]
    if site is None or above.site is None:
        return MatchError(
            f"the output {circuit!r} does not depend on {site}",
            facts=facts,
            hint="give the circuit of the metric, or pass allow_missing=True",
        )
    sender, receiver = find(circuit, site.name).node, find(circuit, above.site.name).node
    if sender is receiver:
        return MatchError(f"{site.name} and {above.site.name} are one node", facts=facts, hint="name it once")
    indirect = receiver.are_any_found(Matcher.circuits(sender))
    return MatchError(
        f"{above.site.name} does not {'read' if indirect else 'depend on'} {site.name}"
        f"{': there are heads or MLPs on every way' if indirect else ''}",
        facts=facts,
        hint='name the parts on the way, or pass between="recomputed"'
        if indirect
        else "leave the path out, or pass allow_missing=True",
    )
