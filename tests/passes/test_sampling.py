"""Sampling: groups are sampled together, different groups give an outer product, seeds decide."""

from __future__ import annotations

from itertools import product
from random import Random
from typing import Any

import pytest
import torch
from harness import arrays, integers, symbol, tensor
from hypothesis import given, settings

from tapeout.backends.reference import evaluate
from tapeout.ir import (
    Add,
    Array,
    Circuit,
    DiscreteVar,
    Einsum,
    GeneralFunction,
    Module,
    ModuleArgSpec,
    ModuleSpec,
    Scalar,
    Tag,
    postorder,
)
from tapeout.ir.errors import DataError, ShapeError, TypeMismatchError, UnsupportedError
from tapeout.passes.sampling import RandomSampleSpec, RunDiscreteVarAllSpec, Sampler, groups_of
from tapeout.testing import random_circuit
from tapeout.testing.strategies import SEEDS

VALUES = [Array(tensor(count, 3, seed=count), name) for count, name in ((4, "v"), (4, "w"), (2, "u"))]
ONE = Array(tensor(3, seed=9), "one")


def group(size: int, name: str = "group") -> Tag:
    return DiscreteVar.uniform_probs_and_group(size, name)


def sample_all(circuit: Circuit, *groups: Circuit) -> torch.Tensor:
    return Sampler(RunDiscreteVarAllSpec(groups)).sample_and_evaluate(circuit)


class TestEverySample:
    def test_variables_of_one_group_are_zipped(self) -> None:
        g = group(4)
        v, w = (DiscreteVar(values, g) for values in VALUES[:2])
        assert torch.equal(sample_all(Add(v, w), g), VALUES[0].value + VALUES[1].value)

    def test_different_groups_give_an_outer_product_in_the_order_listed(self) -> None:
        g, h = group(4), group(2)
        circuit = Add(DiscreteVar(VALUES[0], g), DiscreteVar(VALUES[2], h))
        wanted = VALUES[0].value[:, None] + VALUES[2].value[None, :]
        assert torch.equal(sample_all(circuit, g, h), wanted)
        assert torch.equal(sample_all(circuit, h, g), wanted.transpose(0, 1))

    def test_groups_of_one_size_are_still_different(self) -> None:
        v, w = DiscreteVar(VALUES[0]), DiscreteVar(VALUES[1])
        wanted = VALUES[0].value[:, None] + VALUES[1].value[None, :]
        assert torch.equal(sample_all(Add(v, w), v.probs_and_group, w.probs_and_group), wanted)
        same = DiscreteVar(VALUES[0])
        assert sample_all(Add(v, same), v.probs_and_group, same.probs_and_group).shape == (4, 4, 3)

    def test_a_group_that_is_not_listed_is_an_error_that_names_it(self) -> None:
        g, h = group(4), group(2, "forgotten")
        circuit = Add(DiscreteVar(VALUES[0], g), DiscreteVar(VALUES[2], h))
        with pytest.raises(DataError, match=r"(?s)1 groups .*not listed: <forgotten \[2\] Tag>.*hint: list every"):
            Sampler(RunDiscreteVarAllSpec([g])).sample(circuit)

    def test_all_groups_of_a_circuit(self) -> None:
        g, h = group(4), group(2)
        first, second = DiscreteVar(VALUES[0], g), DiscreteVar(VALUES[2], h)
        assert groups_of(Add(first, second, DiscreteVar(VALUES[1], g))) == [g, h]
        spec = RunDiscreteVarAllSpec.create_full_from_circuits(second, Add(first, second))
        assert list(spec.groups) == [h, g]
        assert Sampler(spec).sample(Add(first, second)).shape == (2, 4, 3)

    def test_what_does_not_vary_is_repeated(self) -> None:
        g, h = group(4), group(2)
        assert torch.equal(sample_all(ONE, g, h), ONE.value.expand(4, 2, 3))
        only = sample_all(DiscreteVar(VALUES[2], h), g, h)
        assert torch.equal(only, VALUES[2].value.expand(4, 2, 3))

    def test_the_batch_spreads_through_modules_and_indices(self) -> None:
        g = group(4, "tokens group")
        tokens = DiscreteVar(Array(integers(4, 5, below=7), "tokens"), g, "tokens")
        embedded = GeneralFunction.gen_index(Array(tensor(7, 3), "embeddings"), tokens, 0)
        x, w = symbol(1, (None, 3), "x"), symbol(2, (3, 2), "w")
        heads = Array(tensor(6, 3, 2, seed=3), "heads")
        body = Einsum.from_einsum_string("sd,de->se", x, w)
        call = Module(ModuleSpec(body, [ModuleArgSpec(x), ModuleArgSpec(w)]), "call", x=embedded, w=heads)
        sampled = Sampler(RunDiscreteVarAllSpec([g])).sample(call)
        assert sampled.shape == (4, 6, 5, 2)
        embeddings = tensor(7, 3)[integers(4, 5, below=7)]
        torch.testing.assert_close(evaluate(sampled), torch.einsum("nsd,hde->nhse", embeddings, heads.value))

    def test_a_variable_inside_a_body(self) -> None:
        g = group(4)
        x = symbol(1, (3,), "x")
        body = Add(x, DiscreteVar(VALUES[0], g), name="body")
        call = Module(ModuleSpec(body, [ModuleArgSpec(x)]), "call", x=VALUES[2])
        wanted = VALUES[0].value[:, None] + VALUES[2].value
        assert torch.equal(sample_all(call, g), wanted)
        both = Module(ModuleSpec(body, [ModuleArgSpec(x)]), "call", x=DiscreteVar(VALUES[1], g))
        assert torch.equal(sample_all(both, g), VALUES[0].value + VALUES[1].value)

    def test_a_computed_variable(self) -> None:
        g = group(4)
        doubled = DiscreteVar(Einsum.scalar_mul(VALUES[0], 2.0), g)
        assert torch.equal(sample_all(doubled, g), 2 * VALUES[0].value)

    def test_a_variable_of_a_variable_is_an_error_or_a_product(self) -> None:
        g, h = group(4), group(2)
        inner = DiscreteVar(VALUES[2], h, "inner")
        outer = DiscreteVar(Add(VALUES[0], inner), g, "outer")
        wanted = VALUES[0].value[None] + VALUES[2].value[:, None]
        assert torch.equal(sample_all(outer, h, g), wanted)
        with pytest.raises(ShapeError, match="'outer' cannot be expanded over its values"):
            sample_all(outer, g, h)
        with pytest.raises(UnsupportedError, match="random variable"):
            sample_all(DiscreteVar(Add(VALUES[0], DiscreteVar(VALUES[1], g).unsqueeze(0)), g), g)

    @settings(max_examples=40)
    @given(SEEDS)
    def test_random_circuits_against_a_loop(self, seed: int) -> None:
        """Leaves become variables of two groups; the value is that of each pair of samples."""
        rng = Random(seed)
        circuit = random_circuit(rng)
        g, h = group(2), group(3)
        chosen = {leaf: rng.choice((g, h)) for leaf in arrays(circuit) if rng.random() < 0.5}
        table = {leaf: rows(leaf, int(by.shape[0])) for leaf, by in chosen.items()}  # type: ignore[arg-type]
        random = circuit.update(table.__contains__, lambda leaf: DiscreteVar(table[leaf], chosen[leaf]))
        found = sample_all(random, g, h)
        for i, j in product(range(2), range(3)):
            row = {leaf: table[leaf].value[i if by is g else j].clone() for leaf, by in chosen.items()}
            alone = circuit.update(row.__contains__, lambda leaf, row=row: Array(row[leaf], "row"))  # type: ignore[misc]
            torch.testing.assert_close(found[i, j], evaluate(alone), rtol=1e-9, atol=1e-9)


def rows(leaf: Array, count: int) -> Array:
    value = leaf.value
    if value.is_floating_point():
        return Array(torch.stack([value * (1 - 0.05 * i) for i in range(count)]), leaf.op_name)
    return Array(torch.stack([value.flip(0) if value.ndim and i % 2 else value for i in range(count)]), leaf.op_name)


class TestRandomSamples:
    g, h = group(4), group(2)
    v, w, u = DiscreteVar(VALUES[0], g), DiscreteVar(VALUES[1], g), DiscreteVar(VALUES[2], h)

    def sample(self, circuit: Circuit, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
        return Sampler(RandomSampleSpec(shape, seed=seed)).sample_and_evaluate(circuit)

    def test_the_seed_decides_and_global_state_is_left_alone(self) -> None:
        before = torch.get_rng_state()
        first = self.sample(Add(self.v, self.u), (50,), seed=3)
        torch.manual_seed(123)
        torch.rand(5)
        assert torch.equal(self.sample(Add(self.v, self.u), (50,), seed=3), first)
        assert not torch.equal(self.sample(Add(self.v, self.u), (50,), seed=4), first)
        torch.set_rng_state(before)
        self.sample(self.v, (5,))
        assert torch.equal(torch.get_rng_state(), before)

    def test_samples_are_rows_and_one_group_is_sampled_together(self) -> None:
        pairs = self.sample(Einsum.from_einsum_string("a,b->ab", self.v, self.w), (40,))
        products = torch.einsum("na,nb->nab", VALUES[0].value, VALUES[1].value)
        places = [[torch.allclose(pair, row) for row in products].index(True) for pair in pairs]
        assert set(places) == {0, 1, 2, 3}

    def test_different_groups_are_independent_and_run_along_the_same_axes(self) -> None:
        found = self.sample(Add(self.v, self.u), (200,))
        assert found.shape == (200, 3)
        sums = VALUES[0].value[:, None] + VALUES[2].value
        places = {tuple((torch.isclose(sums, row).all(-1)).nonzero()[0].tolist()) for row in found}
        assert len(places) == 8

    @pytest.mark.parametrize("shape", [(), (5,), (2, 3), (1,)], ids=str)
    def test_shapes(self, shape: tuple[int, ...]) -> None:
        for circuit in (self.v, Add(self.v, self.u, name="sum"), ONE):
            sampled = Sampler(RandomSampleSpec(shape)).sample(circuit)
            assert sampled.shape == (*shape, 3)
            assert evaluate(sampled).shape == (*shape, 3)
        assert Sampler(RandomSampleSpec(shape)).sample(Add(self.v, self.u, name="sum")).name == "sum"

    def test_probabilities_are_used(self) -> None:
        weights = Array(torch.tensor([0.0, 0.9, 0.0, 0.1]), "weights")
        found = self.sample(DiscreteVar(Array(torch.arange(4.0)), Tag.new_with_random_uuid(weights)), (400,))
        assert set(found.tolist()) == {1.0, 3.0}
        assert 300 < int((found == 1).sum()) < 395
        assert set(self.sample(DiscreteVar(Array(torch.arange(4.0)), weights), (400,)).tolist()) == {1.0, 3.0}

    @pytest.mark.parametrize("weights", [[0.0, 0.0], [0.5, -0.5], [float("nan"), 1.0]], ids=str)
    def test_what_is_no_probability(self, weights: list[float]) -> None:
        variable = DiscreteVar(VALUES[2], Array(torch.tensor(weights), "weights"))
        with pytest.raises(DataError, match=r"(?s)weights.*no probabilities.*hint"):
            self.sample(variable, (3,))

    @pytest.mark.parametrize("shape", [(0,), (2, 0), (-1,)], ids=str)
    def test_no_samples(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(DataError, match=r"(?s)samples of shape.*hint: every size must be at least 1"):
            self.sample(self.v, shape)

    def test_computed_probabilities(self) -> None:
        variable = DiscreteVar(VALUES[2], Add(Scalar(0.25, (2,)), Scalar(0.25, (2,)), name="computed"))
        with pytest.raises(TypeMismatchError, match=r"(?s)<computed \[2\] Add> are computed.*hint"):
            self.sample(variable, (3,))


def test_tags_go_when_no_variable_is_left_and_not_before() -> None:
    g = group(4)
    tagged = Tag.new_with_random_uuid(ONE, "tagged")
    circuit = Add(DiscreteVar(VALUES[0], g), tagged)
    sampled = Sampler(RunDiscreteVarAllSpec([g])).sample(circuit)
    assert not any(isinstance(node, Tag | DiscreteVar) for node in postorder(sampled))
    other = DiscreteVar(VALUES[2])

    class OnlyOne:
        def picks(self, groups: Any) -> list[tuple[Circuit, None]]:
            return [(g, None)]

    half = Sampler(OnlyOne()).sample(Add(circuit, other))
    assert half.get("tagged") and half.get(DiscreteVar) == {other}


def test_against_rust_circuit() -> None:
    rc = pytest.importorskip("rust_circuit")
    oracle = pytest.importorskip("oracle")
    compared = 0
    for seed in range(60):
        rng = Random(seed)
        try:
            circuit = oracle.expressible(random_circuit(rng, modules=seed % 3 == 0))
            oracle.to_rust(circuit)
        except (oracle.Inexpressible, ShapeError):
            continue
        g, h = group(2, "g"), group(3, "h")
        leaves = [leaf for leaf in arrays(circuit) if leaf.value.is_floating_point() and rng.random() < 0.5]
        chosen = {leaf: rng.choice((g, h)) for leaf in leaves}
        table = {leaf: rows(leaf, int(by.shape[0])) for leaf, by in chosen.items()}  # type: ignore[arg-type]
        random = circuit.update(
            table.__contains__,
            lambda leaf, table=table, chosen=chosen: DiscreteVar(table[leaf], chosen[leaf]),  # type: ignore[misc]
        )
        for order in ((g, h), (h, g)):
            try:
                spec = rc.RunDiscreteVarAllSpec([oracle.to_rust(each) for each in order])
                wanted = rc.Sampler(spec).sample(oracle.to_rust(random)).evaluate()
            except (ValueError, RuntimeError):  # what the oracle does not expand, or evaluate
                continue
            torch.testing.assert_close(sample_all(random, *order), wanted, rtol=1e-9, atol=1e-9)
            compared += bool(chosen)
    assert compared > 40
