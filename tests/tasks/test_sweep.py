"""Sweeps: every variant as a single patch gives it, shared work once, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from splits import by_head_and_position, difference

from tapeout.compiler import compile_many
from tapeout.compiler.checks.tolerances import TOLERANCES, Deviation
from tapeout.ir import Array, Circuit, GeneralFunction, Matcher, TorchDeviceDtypeOp
from tapeout.ir.errors import ArtefactError, DataError, MatchError, ShapeError, TapeoutError, UnsupportedError
from tapeout.models.parts.names import END, Site
from tapeout.tasks.ioi.circuit import bind_dataset
from tapeout.tasks.patching import PATCH_TOKENS, ablate, activation_patch, expose, path_patch
from tapeout.tasks.patching.sweeps import variants as of
from tapeout.tasks.patching.sweeps.edits import sweep_edits
from tapeout.tasks.patching.sweeps.result import SweepResult
from tapeout.tasks.patching.sweeps.sweep import Sweep, sweep
from tapeout.tasks.patching.sweeps.variants import Variant, Variants

ROWS, LENGTH, VOCABULARY = 3, 5, 11
MODELS = {"gpt2": lambda: tiny.gpt2(VOCABULARY, layers=3), "llama": lambda: tiny.llama(VOCABULARY, layers=3)}


def rows(seed: int) -> torch.Tensor:
    return torch.randint(VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(seed))


BASELINE = {"tokens": rows(0), "labels": torch.tensor([[1, 2], [3, 4], [5, 6]])}
PATCH = {"tokens": torch.cat([BASELINE["tokens"][:, :1], rows(1)[:, 1:]], 1)}
"""The first position is equal in both."""

F64 = {"dtype": "float64"}


@pytest.fixture(scope="module", params=MODELS)
def metric(request: pytest.FixtureRequest) -> Circuit:
    return difference(by_head_and_position(MODELS[request.param](), LENGTH))


@pytest.fixture(scope="module")
def gpt2() -> Circuit:
    return difference(by_head_and_position(MODELS["gpt2"](), LENGTH))


def single(metric: Circuit, variant: Variant) -> np.ndarray[Any, Any]:
    """One variant by itself, on the reference."""
    if variant.also:
        sites = [Site(part.what, part.positions) for part in variant.parts]
        return activation_patch(metric, sites, PATCH, BASELINE).evaluate("float64").numpy()
    if variant.with_ == "patch":
        return path_patch(metric, str(variant), BASELINE, PATCH, allow_missing=True).evaluate("float64").numpy()
    exposed = expose(metric, [Site(variant.what, variant.positions)])
    nodes = exposed.nodes[Site(variant.what, variant.positions)]
    circuit = exposed.circuit
    for node in nodes:
        values = torch.zeros(1)
        if variant.with_ == "mean":
            values = bind_dataset(node, PATCH["tokens"]).evaluate("float64").mean(0)
        cast = TorchDeviceDtypeOp(dtype="float32")  # on paper: all is evaluated in float64
        value = GeneralFunction.new_cast(Array(values.double().expand(node.shape)), output=cast)
        circuit = circuit.update(Matcher.circuits(node), lambda _, value=value: value)  # type: ignore[misc]
    return bind_dataset(circuit, BASELINE["tokens"], BASELINE["labels"]).evaluate("float64").numpy()


def some(variants: Variants, count: int = 3) -> list[tuple[int, ...]]:
    """Some of the cells, from all parts of the grid."""
    cells = list(variants.cells)
    step = max(1, len(cells) // count)
    return cells[step // 2 :: step]


LISTED = [
    "a1.input", "a2.input@3", "m1.input@-1", "m2.input", "final.input", "embeds@2", "embeds -> a1.h0.q",
    "m0@3 -> a1.h1.v", "m1@-1 -> final.input", "m0 -> m2", "a0.h1@3 -> m1", "a0.h0@1,3 -> a2.h1", "a0.h1 -> a1.input",
]  # fmt: skip

SETS = {
    "two heads": ["a0.h0", "a2.h1"],
    "a layer": ["a1.h0", "a1.h1", "m1"],
    "at other positions": ["a0.h0@3", "m0@2", "a1.h1@2,4", "a2.h0@END"],
    "what heads read": ["a0.h1.k@3", "a1.h0.q", "a1.h1.v", "a2.h0.pattern", "a2.h1.k"],
    "streams": ["embeds@2", "a0.h0", "m1.input@3", "a2.h0.q@4", "final.input@1"],
    "the end": ["m0@END", "a2.h1", "m2"],
    "nothing and something": ["a0.h0@0", "m1@0", "a1.h0@3"],
}

CASES: dict[str, Callable[[Circuit], Variants]] = {
    **{f"heads {part}": lambda m, part=part: of.heads(m, part) for part in ("out", "q", "k", "v", "pattern")},  # type: ignore[misc]
    **{
        f"{part} by position": lambda m, part=part: of.heads_by_position(m, part)  # type: ignore[misc]
        for part in ("out", "q", "k", "v", "pattern")
    },
    "some positions of keys": lambda m: of.heads(m, "k", positions=(1, -1)),
    "some positions of outputs": lambda m: of.heads(m, positions=(2, 4)),
    "mlps": of.mlps,
    "mlps by position": lambda m: of.mlps(m, by_position=True),
    "streams": of.residual_streams,
    "streams by position": lambda m: of.residual_streams(m, by_position=True),
    "direct": of.direct,
    "direct at all positions": lambda m: of.direct(m, positions=None),
    "direct to a stream": lambda m: of.direct(m, positions=(2, 3), into="a2.input"),
    "edges to q at the end": of.edges,
    "edges to q": lambda m: of.edges(m, positions=None),
    "edges to k": lambda m: of.edges(m, "k", positions=None),
    "edges to v at one position": lambda m: of.edges(m, "v", positions=(2,)),
    "listed": lambda m: of.listed(LISTED),
    "sets": lambda m: of.sets(SETS),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_single_patches(metric: Circuit, case: str) -> None:
    variants = CASES[case](metric)
    result = sweep(metric, variants, BASELINE, PATCH, **F64)
    values = result.to_numpy()
    assert result.complete and result.dims == (*variants.dims, "prompt")
    assert np.isfinite(values).all(-1).sum() == len(variants)
    cells = some(variants, len(variants) if case in ("listed", "sets") else 3)
    errors = [np.abs(values[cell] - single(metric, variants.cells[cell])).max() for cell in cells]
    assert max(errors) < 1e-11
    assert np.nanmax(np.abs(result.effect().to_numpy())) > 1e-4


@pytest.mark.parametrize("with_", ["zero", "mean"])
@pytest.mark.parametrize("part", ["out", "q", "v"])
def test_ablations_equal_single_ones(metric: Circuit, part: Any, with_: Any) -> None:
    variants = of.heads(metric, part, positions=None if part == "out" else (0, 2), with_=with_)
    values = sweep(metric, variants, BASELINE, PATCH, **F64).to_numpy()
    errors = [np.abs(values[cell] - single(metric, variants.cells[cell])).max() for cell in some(variants, 3)]
    assert max(errors) < 1e-11


@pytest.mark.parametrize("with_", ["zero", "mean"])
def test_ablations_of_sets_equal_single_ones(metric: Circuit, with_: Any) -> None:
    named = {name: parts for name, parts in SETS.items() if "a2.h0.pattern" not in parts}
    values = sweep(metric, of.sets(named, with_=with_), BASELINE, PATCH, **F64).to_numpy()
    over = PATCH if with_ == "mean" else None
    expected = [ablate(metric, parts, with_, over=over, baseline=BASELINE) for parts in named.values()]
    largest = max(np.abs(v - e.evaluate("float64").numpy()).max() for v, e in zip(values, expected, strict=True))
    assert largest < (1e-11 if with_ == "zero" else 1e-5), "single edits hold their means in float32"


def test_a_set_has_parts() -> None:
    with pytest.raises(DataError, match="name at least one"):
        of.sets({"none": []})


def test_sets_are_read_from_a_list(gpt2: Circuit) -> None:
    result = sweep(gpt2, ["a0.h0@3 + a2.h1", "m1"], BASELINE, PATCH, **F64)
    both = activation_patch(gpt2, ["a0.h0@3", "a2.h1"], PATCH, BASELINE).evaluate("float64").numpy()
    assert list(result.values["variant"].values) == ["a0.h0@3 + a2.h1", "m1"]
    assert np.abs(result.to_numpy()[0] - both).max() < 1e-12


def test_mlp_ablations_leave_the_output_bias(metric: Circuit) -> None:
    variants = of.mlps(metric, with_="zero")
    values = sweep(metric, variants, BASELINE, PATCH, **F64).to_numpy()
    errors = [np.abs(values[cell] - single(metric, variant)).max() for cell, variant in variants.cells.items()]
    assert max(errors) < 1e-11


def test_a_key_that_heads_share() -> None:
    metric = difference(by_head_and_position(MODELS["llama"](), LENGTH))
    variants = of.listed(["a1.kv0.k", "a1.kv1.v@3"])
    values = sweep(metric, variants, BASELINE, PATCH, **F64).to_numpy()
    errors = [np.abs(values[cell] - single(metric, variant)).max() for cell, variant in variants.cells.items()]
    assert max(errors) < 1e-11


@pytest.mark.parametrize("with_", ["patch", "zero", "mean"])
def test_the_values_that_heads_gather(gpt2: Circuit, with_: Any) -> None:
    variants = of.listed([Variant.of("a1.h0.z", with_=with_), Variant.of("a0.h1.z@1,3", with_=with_)])
    values = sweep(gpt2, variants, BASELINE, PATCH, **F64).to_numpy()
    errors = [np.abs(values[cell] - single(gpt2, variant)).max() for cell, variant in variants.cells.items()]
    assert max(errors) < 1e-11


FEW_HEADS = {
    "one head": lambda: tiny.gpt2(VOCABULARY, layers=2, heads=1),
    "one head with rotary positions": lambda: tiny.llama(VOCABULARY, layers=2, heads=1, kv_heads=1),
    "one key for all heads": lambda: tiny.llama(VOCABULARY, layers=2, heads=4, kv_heads=1),
}


@pytest.mark.parametrize("model", FEW_HEADS)
def test_models_of_one_head_or_one_key(model: str) -> None:
    metric = difference(by_head_and_position(FEW_HEADS[model](), LENGTH))
    shared = ["a0.kv0.k", "a1.kv0.v@2"] if model == "one key for all heads" else []
    last = "a0.h3" if shared else "a0.h0"
    names = [last, "a1.h0", "a0.h0.q", "a1.h0.k@1,2", "a1.h0.pattern", f"{last} -> a1.h0.q", f"{last} -> a1.h0", "m0"]
    variants = of.listed([*names, *shared])
    values = sweep(metric, variants, BASELINE, PATCH, **F64).to_numpy()
    errors = [np.abs(values[cell] - single(metric, variant)).max() for cell, variant in variants.cells.items()]
    assert max(errors) < 1e-11


def test_patched_with_its_own_value_nothing_changes(metric: Circuit) -> None:
    for variants in (of.heads(metric), of.heads(metric, "pattern"), of.edges(metric, "k", positions=None)):
        result = sweep(metric, variants, BASELINE, BASELINE, **F64)
        assert np.nanmax(np.abs(result.effect().to_numpy())) < 1e-12


def test_one_after_another_the_heads_at_the_end_are_the_patch_run(gpt2: Circuit) -> None:
    """The last residual stream from the patch data is the patch run."""
    result = sweep(gpt2, ["final.input"], BASELINE, PATCH, **F64)
    expected = bind_dataset(gpt2, PATCH["tokens"], BASELINE["labels"]).evaluate("float64")
    assert np.abs(result.to_numpy()[0] - expected.numpy()).max() < 1e-12


def test_a_metric_at_an_earlier_position() -> None:
    """Positions behind the one that is read are computed, and change nothing."""
    logits = by_head_and_position(MODELS["gpt2"](), LENGTH)
    metric = difference(logits.index((slice(0, 3),), name="first_logits"))
    for variants in (of.heads(metric), of.edges(metric, "q", positions=None), of.heads_by_position(metric, "v")):
        values = sweep(metric, variants, BASELINE, PATCH, **F64).to_numpy()
        errors = [np.abs(values[cell] - single(metric, variants.cells[cell])).max() for cell in some(variants, 3)]
        assert max(errors) < 1e-11


def least_memory(metric: Circuit, variants: Variants, **options: Any) -> int:
    """What one variant on one prompt takes, as the error says."""
    with pytest.raises(UnsupportedError, match="the weights alone are") as error:
        Sweep(metric, variants, BASELINE, PATCH, max_memory=1000, **options)
    return int(str(error.value).split(" bytes")[0].split()[-1].replace(",", ""))


@pytest.mark.parametrize("case", ["edges to k", "sets"])
def test_parts_that_fit_the_memory_give_the_same(metric: Circuit, case: str) -> None:
    variants = CASES[case](metric)
    whole = Sweep(metric, variants, BASELINE, PATCH, **F64)
    needed = least_memory(metric, variants, **F64)
    small = Sweep(metric, variants, BASELINE, PATCH, max_memory=needed, **F64)
    assert small.portions.prompts == 1 and small.portions.positions < whole.portions.positions
    assert np.nanmax(np.abs(small.run().to_numpy() - whole.run().to_numpy())) < 1e-12
    means = of.heads(metric, with_="mean")
    limits = (None, 2 * needed)
    parts = [sweep(metric, means, BASELINE, PATCH, max_memory=limit, **F64).to_numpy() for limit in limits]
    assert np.abs(parts[0] - parts[1]).max() < 1e-12


@pytest.mark.parametrize("positions", [1, 17, 40])
def test_rows_that_go_some_at_a_time_give_the_same(
    metric: Circuit, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer rows than prompts, and whole variants with fewer of them the last time."""
    for variants in (of.heads_by_position(metric), of.edges(metric, positions=(-1,))):
        whole = sweep(metric, variants, BASELINE, PATCH, **F64).to_numpy()
        with monkeypatch.context() as patched:
            patched.setattr("tapeout.tasks.patching.sweeps.plan._POSITIONS", {"cpu": positions})
            parts = sweep(metric, variants, BASELINE, PATCH, **F64).to_numpy()
        assert np.nanmax(np.abs(parts - whole)) < 1e-12


def test_an_interruption_keeps_what_is_finished(gpt2: Circuit) -> None:
    said: list[tuple[str, int, int]] = []

    def stop(what: str, done: int, total: int) -> None:
        said.append((what, done, total))
        raise KeyboardInterrupt

    variants = of.heads_by_position(gpt2)
    result = Sweep(gpt2, variants, BASELINE, PATCH, progress=stop, **F64).run()
    finished = np.isfinite(result.to_numpy()).all(-1)
    assert not result.complete and 0 < finished.sum() < len(variants)
    whole = sweep(gpt2, variants, BASELINE, PATCH, **F64).to_numpy()
    assert np.abs(whole[finished] - result.to_numpy()[finished]).max() < 1e-12
    assert said[0][0] == "variants" and said[0][2] == len(variants) * (LENGTH - 1) // LENGTH


@pytest.mark.parametrize("case", ["heads out", "heads k", "direct", "edges to q", "edges to q at the end", "sets"])
def test_what_is_estimated_is_what_is_done_and_no_more_than_distinct_work(gpt2: Circuit, case: str) -> None:
    variants = CASES[case](gpt2)
    planned = Sweep(gpt2, variants, BASELINE, PATCH)
    estimate = planned.estimate()
    assert planned.pieces.calls == 0, "nothing runs"
    planned.run()
    assert (planned.pieces.flops, planned.pieces.calls) == (estimate.flops, estimate.calls)
    patched = [
        activation_patch(gpt2, [Site(part.what, part.positions) for part in variant.parts])
        if variant.also
        else path_patch(gpt2, str(variant), allow_missing=True)
        for variant in variants.cells.values()
    ]
    distinct = compile_many([gpt2, *patched], inputs=["tokens", "labels", PATCH_TOKENS]).cost(ROWS).flops
    assert estimate.flops <= 1.2 * distinct
    assert estimate.seconds > 0 and estimate.weight_bytes > 0


def test_means_are_estimated_once_for_all_parts(gpt2: Circuit) -> None:
    variants = of.heads(gpt2, with_="mean")
    planned = Sweep(gpt2, variants, BASELINE, PATCH, max_memory=least_memory(gpt2, variants))
    estimate = planned.estimate()
    assert planned.portions.prompts < ROWS
    planned.run()
    assert (planned.pieces.flops, planned.pieces.calls) == (estimate.flops, estimate.calls)


def test_what_lies_before_the_first_change_is_not_computed(gpt2: Circuit) -> None:
    late = {"tokens": torch.cat([BASELINE["tokens"][:, :-1], rows(1)[:, -1:]], 1)}
    early, end = (Sweep(gpt2, of.heads(gpt2), BASELINE, data).estimate().flops for data in (PATCH, late))
    assert end < 0.75 * early
    plan = Sweep(gpt2, of.heads_by_position(gpt2), BASELINE, late).plan
    assert len(plan.unchanged) == (LENGTH - 1) * 6 and len(plan.entries) == 6


@pytest.mark.parametrize("backend", ["torchscript", "onnx"])
def test_on_other_backends(gpt2: Circuit, backend: str) -> None:
    variants = of.heads_by_position(gpt2, positions=(2, -1))
    found = sweep(gpt2, variants, BASELINE, PATCH, backend=backend).to_numpy()
    expected = sweep(gpt2, variants, BASELINE, PATCH, **F64).to_numpy()
    assert np.abs(found - expected).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("case", ["heads of key", "edges to q at the end"])
def test_on_inductor(case: str) -> None:
    """Windows of several positions and of one, queries at one position, and several rows a call."""
    small = difference(by_head_and_position(tiny.gpt2(VOCABULARY), LENGTH))
    variants = of.heads_by_position(small, "k", positions=(2, -1)) if case.startswith("heads") else of.edges(small)
    found = sweep(small, variants, BASELINE, PATCH, backend="inductor").to_numpy()
    expected = sweep(small, variants, BASELINE, PATCH, **F64).to_numpy()
    assert np.nanmax(np.abs(found - expected)) < 1e-4


@pytest.mark.parametrize("case", ["heads out", "heads pattern", "edges to q"])
def test_in_bfloat16(metric: Circuit, case: str) -> None:
    """Products are narrow; streams and results are not, and neither is what lies between pieces."""
    variants = CASES[case](metric)
    expected = torch.from_numpy(sweep(metric, variants, BASELINE, PATCH, **F64).to_numpy())
    found = torch.from_numpy(sweep(metric, variants, BASELINE, PATCH, dtype="bfloat16").to_numpy())
    off = Deviation.of(found[~expected.isnan()], expected[~expected.isnan()])
    assert off.relative > 0 and off.within(TOLERANCES[torch.bfloat16])


def test_the_result_has_labels_and_is_saved(gpt2: Circuit, tmp_path: Path) -> None:
    result = sweep(gpt2, of.edges(gpt2), BASELINE, PATCH, **F64)
    assert list(result.values["sender"].values[:3]) == ["a0.h0", "a0.h1", "a1.h0"]
    series = result.to_pandas()
    assert series["a0.h1", "a2.h0", 1] == float(result.values.sel(sender="a0.h1", receiver="a2.h0", prompt=1))
    assert len(series) == len(of.edges(gpt2)) * ROWS
    mean = result.mean()
    assert mean.dims == ("sender", "receiver") and mean.baseline.shape == ()
    assert np.allclose(mean.to_numpy(), result.to_numpy().mean(-1), equal_nan=True)
    for each in (result, mean):
        files = each.save(tmp_path / "deep" / "edges")
        assert {file.suffix for file in files} >= {".npz", ".json"} and all(file.exists() for file in files)
        again = SweepResult.load(tmp_path / "deep" / "edges")
        assert again.values.equals(each.values) and again.baseline.equals(each.baseline) and again.complete
    assert json.loads((tmp_path / "deep" / "edges.json").read_text())["dims"] == ["sender", "receiver"]
    assert not list((tmp_path / "deep").glob(".*")), "nothing is left behind"
    with pytest.raises(MatchError, match="the axes are sender, receiver"):
        mean.mean("prompt")


def test_edits_equal_what_is_known_by_name(metric: Circuit) -> None:
    names = ["a0.h0", "a1.h1@2", "a0.h1 -> a2.h0.q", "m1"]
    edits: dict[str, Any] = {name: name for name in names}
    edits["m1"] = lambda circuit: path_patch(circuit, "m1")
    said: list[tuple[str, int, int]] = []
    found = sweep_edits(metric, edits, BASELINE, PATCH, progress=lambda *done: said.append(done), **F64)
    expected = sweep(metric, names, BASELINE, PATCH, **F64)
    assert np.abs(found.to_numpy() - expected.to_numpy()).max() < 1e-12
    assert np.abs(found.baseline.to_numpy() - expected.baseline.to_numpy()).max() < 1e-12
    assert found.complete and list(found.values["variant"].values) == names and said == [("edits", 4, 4)]


def test_edits_of_several_parts_at_once(gpt2: Circuit) -> None:
    both = {"both": ["a1.h0", "a1.h1"], "all of it": "logits"}
    found = sweep_edits(gpt2, both, BASELINE, PATCH, **F64).to_numpy()
    assert np.abs(found[0] - path_patch(gpt2, both["both"], BASELINE, PATCH).evaluate("float64").numpy()).max() < 1e-12
    expected = bind_dataset(gpt2, PATCH["tokens"], BASELINE["labels"]).evaluate("float64").numpy()
    assert np.abs(found[1] - expected).max() < 1e-12
    with pytest.raises(DataError, match="give at least one"):
        sweep_edits(gpt2, {}, BASELINE, PATCH)

    def stop(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    assert not sweep_edits(gpt2, both, BASELINE, PATCH, progress=stop).complete


BAD: dict[str, tuple[type[TapeoutError], str, Any]] = {
    "twice": (DataError, "list each once", ["a0.h0", "a0.h0"]),
    "twice under two numbers": (DataError, "-1 is the last", ["a0.h0@-1", f"a0.h0@{LENGTH - 1}"]),
    "a position twice": (DataError, "name each once", [f"a0.h0@-1,{LENGTH - 1}"]),
    "no variants": (DataError, "give at least one", []),
    "outside": (ShapeError, f"positions are 0 to {LENGTH - 1}", [f"a0.h0@{LENGTH}"]),
    "no such layer": (MatchError, "layers go from 0 to 2", ["a3.h0"]),
    "no such head": (MatchError, "they go from 0 to 1", ["a0.h2"]),
    "against data flow": (MatchError, "must come after the sender", ["a1.h0 -> a0.h1.q"]),
    "within a layer": (MatchError, "must come after the sender", ["a1.h0 -> a1.h1.q"]),
    "a sender that writes nothing": (MatchError, "senders are heads", ["a0.h0.q -> a1.h1.q"]),
    "a receiver that reads nothing": (MatchError, "receivers are heads", ["a0.h0 -> a1.h1.pattern"]),
    "gathered values, which heads alone read": (MatchError, "receivers are heads", ["a0.h0 -> a1.h1.z"]),
    "keys that are not shared": (MatchError, "use a0.h1.k", ["a0.kv1.k"]),
    "a pattern of zeros": (DataError, "ablate the head's output", [Variant.of("a0.h0.pattern", with_="zero")]),
    "a part twice in a set": (DataError, "sweep_edits", ["a0.h0 + m0 + a0.h0@2"]),
    "two reads of one head": (DataError, "sweep_edits", ["a1.h0.k + a1.h0.v"]),
    "a stream and what is written to it": (DataError, "sweep_edits", ["m0 + a1.input"]),
    "a path in a set": (DataError, "sweep_edits", ["m0 -> a1.h0.q + a0.h0"]),
    "one set twice": (DataError, "list each once", ["a0.h0 + m0", "m0 + a0.h0"]),
    "outside, in a set": (ShapeError, f"positions are 0 to {LENGTH - 1}", [f"m0 + a0.h0@{LENGTH}"]),
    "after the last norm": (MatchError, "patch final.input", ["logits"]),
    "a position of the receiver": (DataError, "name those of the sender alone", ["a0.h0@1 -> a1.h1.q@2"]),
    "a long path": (DataError, "longer paths go to sweep_edits", ["a0.h0 -> a1.h1.q -> final.input"]),
    "numbers": (DataError, "hint: give names", [1, 2]),
    "edits": (DataError, "parts by label go to sets, edits to sweep_edits", {"mine": ["a0.h0", "m1"]}),
}


@pytest.mark.parametrize("case", BAD)
def test_variants_that_are_refused(gpt2: Circuit, case: str) -> None:
    kind, hint, variants = BAD[case]
    with pytest.raises(kind, match=hint):
        Sweep(gpt2, variants, BASELINE, PATCH)


BAD_GRIDS: dict[str, tuple[type[TapeoutError], str, Callable[[Circuit], object]]] = {
    "part": (DataError, "use one of out, q, k, v, pattern", lambda circuit: of.heads(circuit, "z")),  # type: ignore[arg-type]
    "read": (DataError, "use one of q, k, v", lambda circuit: of.edges(circuit, "out")),  # type: ignore[arg-type]
    "with": (DataError, 'use "patch", "zero"', lambda circuit: of.mlps(circuit, with_="median")),  # type: ignore[arg-type]
    "end": (ShapeError, "END \\(patching.END\\)", lambda circuit: of.direct(circuit, "END")),  # type: ignore[arg-type]
    "rows": (ShapeError, "the same for every prompt", lambda circuit: of.heads(circuit, positions=torch.tensor([1]))),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", BAD_GRIDS)
def test_grids_that_are_refused_when_they_are_made(gpt2: Circuit, case: str) -> None:
    kind, hint, make = BAD_GRIDS[case]
    with pytest.raises(kind, match=hint):
        make(gpt2)


def test_one_position_and_one_name_stand_for_themselves(gpt2: Circuit) -> None:
    assert of.heads_by_position(gpt2, positions=END).cells == of.heads_by_position(gpt2, positions=[END]).cells
    assert of.edges(gpt2, positions=2).cells == of.edges(gpt2, positions=(2,)).cells
    assert of.listed("a0.h1@2").cells == of.listed(["a0.h1@2"]).cells


BAD_SETTINGS: dict[str, tuple[type[TapeoutError], str, dict[str, Any]]] = {
    "backend": (UnsupportedError, "there are fx, torchscript", {"backend": "jax"}),
    "device": (UnsupportedError, 'use "cpu" or', {"device": "tpu"}),
    "memory": (UnsupportedError, "give bytes, 4 << 30", {"max_memory": "4GB"}),
    "patch data": (DataError, "give patch=dataset", {"patch": None}),
    "labels": (DataError, "the IO and the S token of each row", {"baseline": {"tokens": BASELINE["tokens"]}}),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_settings_that_are_refused(gpt2: Circuit, case: str) -> None:
    kind, hint, given = BAD_SETTINGS[case]
    with pytest.raises(kind, match=hint):
        Sweep(gpt2, of.heads(gpt2), **{"baseline": BASELINE, "patch": PATCH, **given})


def test_without_patch_data_what_needs_none_runs(gpt2: Circuit) -> None:
    zeros = sweep(gpt2, of.heads(gpt2, with_="zero"), BASELINE, **F64).to_numpy()
    assert np.array_equal(zeros, sweep(gpt2, of.heads(gpt2, with_="zero"), BASELINE, PATCH, **F64).to_numpy())


def test_a_client_that_is_none(gpt2: Circuit) -> None:
    with pytest.raises(UnsupportedError, match=r"hint: give distributed\.Client"):
        sweep(gpt2, of.heads(gpt2), BASELINE, PATCH, client="localhost:8786")  # type: ignore[arg-type]


@pytest.mark.parametrize("head", ["a0.h0", "a0.h1"])
def test_a_head_that_was_replaced_is_not_taken_for_another(gpt2: Circuit, head: str) -> None:
    for replaced in (ablate(gpt2, head), ablate(gpt2, head, "mean", over={"tokens": BASELINE["tokens"]})):
        with pytest.raises(UnsupportedError, match="sweep over the circuit as it was split, before it was patched"):
            Sweep(replaced, ["a0.h0"], BASELINE, PATCH)


def test_edits_that_are_refused(gpt2: Circuit) -> None:
    with pytest.raises(DataError, match="hint: give at least one, by label"):
        sweep_edits(gpt2, ["a0.h0"], BASELINE, PATCH)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"the edit 'mine' gives None\nhint: an edit returns the metric"):
        sweep_edits(gpt2, {"mine": lambda _: None}, BASELINE, PATCH)
    with pytest.raises(MatchError) as caught:
        sweep_edits(gpt2, {"one": "a0.h0", "other": "a7.h0"}, BASELINE, PATCH)
    assert caught.value.__notes__ == ["in the edit 'other'"]


def test_files_of_results(gpt2: Circuit, tmp_path: Path) -> None:
    result = sweep(gpt2, of.mlps(gpt2), BASELINE, PATCH)
    assert result.save(tmp_path / "a.npz")[0] == tmp_path / "a.npz"
    for name in ("a", "a.npz", "a.json"):
        assert np.array_equal(SweepResult.load(tmp_path / name).to_numpy(), result.to_numpy())
    with pytest.raises(ArtefactError, match=r"hint: give the path that SweepResult\.save was"):
        SweepResult.load(tmp_path / "b")
    (tmp_path / "a.npz").write_bytes(b"no")
    with pytest.raises(ArtefactError, match="not a zip file"):
        SweepResult.load(tmp_path / "a")
    with pytest.raises(ArtefactError, match=r"cannot be written.*\nhint: check the disk"):
        result.save(tmp_path / "a.npz" / "c")


def test_data_and_circuits_that_are_refused(gpt2: Circuit) -> None:
    with pytest.raises(DataError, match="both need as many rows, of equal length"):
        Sweep(gpt2, of.heads(gpt2), BASELINE, {"tokens": PATCH["tokens"][:2]})
    with pytest.raises(DataError, match="rows of the length that the circuit was built for"):
        longer = {
            name: torch.cat([data["tokens"], data["tokens"]], 1) for name, data in (("b", BASELINE), ("p", PATCH))
        }
        Sweep(gpt2, of.heads(gpt2), {**BASELINE, "tokens": longer["b"]}, {"tokens": longer["p"]})
    with pytest.raises(ShapeError, match="make one number a prompt"):
        logits, tokens = by_head_and_position(MODELS["gpt2"](), LENGTH), {"tokens": BASELINE["tokens"]}
        Sweep(logits, of.heads(gpt2), tokens, PATCH)
    with pytest.raises(UnsupportedError, match="as it was split, before it was patched"):
        Sweep(gpt2.update("a0.h0", lambda head: head.mul_scalar(2.0)), of.heads(gpt2), BASELINE, PATCH)
