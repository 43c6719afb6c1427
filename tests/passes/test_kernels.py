"""Kernels: which patterns become one node, which do not, and that the value stays either way."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
import torch
from harness import symbol, tensor
from hypothesis import given
from tolerances import assert_close

from tapeout.compiler import compile
from tapeout.ir import (
    Add,
    Array,
    Circuit,
    Einsum,
    GeneralFunction,
    Matcher,
    Rearrange,
    RearrangeSpec,
    Scalar,
    circuit_text,
    postorder,
)
from tapeout.ir.errors import ShapeError
from tapeout.ir.nodes.kernels import Attention, LayerNorm, Linear, RMSNorm, Rotary
from tapeout.passes.execution import Origins
from tapeout.passes.inline import Inline
from tapeout.passes.kernels import Kernels
from tapeout.testing import random_circuit
from tapeout.testing.strategies import SEEDS

ROWS, WIDTH = 3, 4
DATA = symbol(900, (ROWS, WIDTH), "x")


def einsum(text: str, *nodes: Circuit) -> Einsum:
    return Einsum.from_einsum_string(text, *nodes)


def weight(*shape: int, seed: int = 1) -> Array:
    return Array(tensor(*shape, seed=seed), f"w{seed}")


def apply(function: str, x: Circuit) -> Circuit:
    return GeneralFunction.new_by_name(x, spec_name=function)


def recognised(*roots: Circuit) -> tuple[Circuit, ...]:
    return Kernels().run_many(Inline().run_many(roots, Origins()), Origins())


def specs(*roots: Circuit) -> list[str]:
    """The kernels in the result, sorted by name."""
    made = {node for node in postorder(*recognised(*roots)) if isinstance(node, GeneralFunction)}
    kernels = [n.spec for n in made if isinstance(n.spec, Attention | LayerNorm | Linear | RMSNorm | Rotary)]
    return sorted(type(spec).__name__ for spec in kernels)


def bound(circuit: Circuit, seed: int = 5) -> Circuit:
    """The circuit with numbers for its symbols."""
    return circuit.update(
        Matcher(lambda node: node.kind == "Symbol"), lambda node: Array(tensor(*node.shape, seed=seed), node.name)
    )


def check_value(*roots: Circuit) -> None:
    for before, after in zip(roots, recognised(*roots), strict=True):
        assert_close(bound(after).evaluate("float64"), bound(before).evaluate("float64"))


# -- norms


def mean_square(x: Circuit, scale: float = 1 / WIDTH, eps: float | None = 1e-5) -> Circuit:
    mean = einsum("sh,sh,->s", x, x, Scalar(scale))
    return apply("rsqrt", mean if eps is None else Add(Scalar(eps), mean))


def centred(x: Circuit, scale: float = -1 / WIDTH) -> Circuit:
    mean = einsum("sh,->s", x, Scalar(scale))
    return Add(x, mean.unsqueeze([1]))


def rms_norm(x: Circuit = DATA, factor: Circuit | None = None) -> Circuit:
    return einsum("sh,h->sh", einsum("sh,s->sh", x, factor or mean_square(x)), weight(WIDTH))


def layer_norm(x: Circuit = DATA) -> Circuit:
    return Add(rms_norm(centred(x)), weight(WIDTH, seed=2))


def test_norms_are_recognised() -> None:
    assert specs(rms_norm()) == ["RMSNorm"]
    assert specs(layer_norm()) == ["LayerNorm"]
    assert specs(Add(*reversed(layer_norm().children))) == ["LayerNorm"]
    check_value(rms_norm(), layer_norm())


NO_NORMS: dict[str, Callable[[], Circuit]] = {
    "another scale": lambda: rms_norm(factor=mean_square(DATA, 1 / 5)),
    "no eps": lambda: rms_norm(factor=mean_square(DATA, eps=None)),
    "the mean square of something else": lambda: rms_norm(factor=mean_square(symbol(901, (ROWS, WIDTH), "y"))),
    "a factor in front": lambda: einsum(
        "sh,h,->sh", einsum("sh,s->sh", DATA, mean_square(DATA)), weight(WIDTH), Scalar(2.0)
    ),
    "a root of another function": lambda: einsum(
        "sh,h->sh", einsum("sh,s->sh", DATA, apply("tanh", Add(Scalar(1e-5), mean_square(DATA)))), weight(WIDTH)
    ),
    "summed over rows": lambda: einsum("sh,h->h", einsum("sh,s->sh", DATA, mean_square(DATA)), weight(WIDTH)),
}


@pytest.mark.parametrize("name", NO_NORMS)
def test_what_only_looks_like_a_norm_stays(name: str) -> None:
    assert not {"RMSNorm", "LayerNorm"} & set(specs(NO_NORMS[name]()))
    check_value(NO_NORMS[name]())


def test_centred_by_another_mean_is_no_layer_norm() -> None:
    x = centred(DATA, -1 / 5)
    circuit = Add(rms_norm(x), weight(WIDTH, seed=2))
    assert "LayerNorm" not in specs(circuit)
    check_value(circuit)


def test_a_norm_whose_parts_are_results_too() -> None:
    root = layer_norm()
    inner = centred(DATA)
    check_value(root, inner, mean_square(inner))
    assert "LayerNorm" in specs(root, inner, mean_square(inner))


# -- attention

QUERIES, KEYS, SIZE, HEADS = 5, 5, 4, 2


def causal(queries: int = QUERIES, keys: int = KEYS) -> torch.Tensor:
    return torch.ones(queries, keys, dtype=torch.float64).tril()


def attention(
    mask: torch.Tensor | None = None, scale: float = 0.5, floor: float = -10_000.0, heads: int = HEADS
) -> Circuit:
    """`softmax(mask * scores + (1 - mask) * -10000) @ v`, as the models write it."""
    q = symbol(910, (heads, QUERIES, SIZE), "q")
    k, v = symbol(911, (heads, KEYS, SIZE), "k"), symbol(912, (heads, KEYS, SIZE + 1), "v")
    if mask is None:
        scores: Circuit = einsum("hqc,hkc,->hqk", q, k, Scalar(scale))
    else:
        allowed = Array(mask, "mask")
        raw = einsum("hqc,hkc,qk,->hqk", q, k, allowed, Scalar(scale))
        scores = Add(raw, einsum("qk,->qk", Add(Scalar(1.0), einsum("qk,->qk", allowed, Scalar(-1.0))), Scalar(floor)))
    return einsum("hqk,hkd->hqd", apply("softmax", scores), v)


def found_attention(circuit: Circuit) -> GeneralFunction | None:
    nodes = [n for n in postorder(*recognised(circuit)) if isinstance(n, GeneralFunction)]
    return next((node for node in nodes if isinstance(node.spec, Attention)), None)


def test_attention_full_and_causal() -> None:
    for circuit, is_causal in ((attention(), False), (attention(causal()), True)):
        node = found_attention(circuit)
        assert node is not None and isinstance(node.spec, Attention)
        assert node.spec.causal is is_causal and len(node.children) == 3 and node.spec.scale == 0.5
        check_value(circuit)


@pytest.mark.parametrize("scale", [0.0, -0.5])
def test_masked_scores_times_no_positive_number_are_no_attention(scale: float) -> None:
    """torch's kernel masks with minus infinity and then multiplies: the result would be no number."""
    circuit = attention(causal(), scale)
    assert found_attention(circuit) is None and found_attention(attention(None, scale)) is not None
    for each in (circuit, attention(None, scale)):
        assert_close(compile(bound(each))(), bound(each).evaluate("float64"), torch.float32)


def test_a_query_that_may_attend_to_nothing_attends_to_all_alike() -> None:
    mask = causal()
    mask[1] = 0
    assert found_attention(attention(mask)) is None
    check_value(attention(mask))


def test_attention_with_another_mask_of_0_and_1() -> None:
    mask = causal()
    mask[3, 1] = 0
    node = found_attention(attention(mask))
    assert node is not None and isinstance(node.spec, Attention) and not node.spec.causal and len(node.children) == 4
    check_value(attention(mask))


def test_attention_with_a_mask_of_ones_has_none() -> None:
    node = found_attention(attention(torch.ones(QUERIES, KEYS, dtype=torch.float64)))
    assert node is not None and len(node.children) == 3
    check_value(attention(torch.ones(QUERIES, KEYS, dtype=torch.float64)))


@pytest.mark.parametrize("value", [0.5, -1.0, 2.0, float("nan")])
def test_a_mask_with_other_numbers_is_no_attention(value: float) -> None:
    mask = causal()
    mask[2, 1] = value
    assert found_attention(attention(mask)) is None
    if value == value:
        check_value(attention(mask))


def test_another_floor_is_no_attention() -> None:
    assert found_attention(attention(causal(), floor=-100.0)) is None
    check_value(attention(causal(), floor=-100.0))


def test_one_query_at_the_last_position() -> None:
    q, k = symbol(920, (HEADS, SIZE), "q"), symbol(911, (HEADS, KEYS, SIZE), "k")
    v = symbol(912, (HEADS, KEYS, SIZE), "v")
    scores = einsum("hc,hkc,->hk", q, k, Scalar(0.5))
    circuit = einsum("hk,hkd->hd", apply("softmax", scores), v)
    assert found_attention(circuit) is not None
    check_value(circuit)
    allowed = Array(causal()[2], "mask")
    floor = einsum("k,->k", Add(Scalar(1.0), einsum("k,->k", allowed, Scalar(-1.0))), Scalar(-10_000.0))
    masked = Add(einsum("hc,hkc,k,->hk", q, k, allowed, Scalar(0.5)), floor)
    circuit = einsum("hk,hkd->hd", apply("softmax", masked), v)
    assert found_attention(circuit) is not None
    check_value(circuit)


def test_no_head_axis_and_two_of_them() -> None:
    q, k, v = (symbol(930 + i, (KEYS, SIZE), name) for i, name in enumerate("qkv"))
    plain = einsum("qk,kd->qd", apply("softmax", einsum("qc,kc->qk", q, k)), v)
    assert found_attention(plain) is not None
    check_value(plain)
    q, k, v = (symbol(940 + i, (2, 3, KEYS, SIZE), name) for i, name in enumerate("qkv"))
    double = einsum("ghqk,ghkd->qghd", apply("softmax", einsum("ghqc,ghkc->ghqk", q, k)), v)
    assert found_attention(double) is not None
    check_value(double)


def test_grouped_queries() -> None:
    """Several heads of queries to one of keys: an axis of the queries that keys lack."""
    q = symbol(950, (2, 3, QUERIES, SIZE), "q")
    k, v = symbol(951, (2, KEYS, SIZE), "k"), symbol(952, (2, KEYS, SIZE), "v")
    circuit = einsum("ghqk,gkd->ghqd", apply("softmax", einsum("ghqc,gkc->ghqk", q, k)), v)
    check_value(circuit)


def test_one_key_for_all_heads() -> None:
    """Also where a single query of each head is computed, so that only the weights tell heads from queries."""
    x, at_end = symbol(953, (2, KEYS, SIZE), "x"), symbol(954, (2, SIZE), "y")
    heads = weight(HEADS, SIZE, SIZE, seed=9)
    for q, text in (
        (einsum("bqx,hcx->bhqc", x, heads), "bhqc,bkc->bhqk"),
        (einsum("bx,hcx->bhc", at_end, heads), "bhc,bkc->bhk"),
    ):
        scores = einsum(text, q, einsum("bkx,cx->bkc", x, weight(SIZE, SIZE, seed=10)))
        axes = text.split("->")[1]
        circuit = einsum(f"{axes},bkd->{axes[:-1]}d", apply("softmax", scores), x)
        node = found_attention(circuit)
        assert node is not None and [child.shape[1] for child in node.children] == [HEADS, 1, 1] and node.rank == 4
        check_value(circuit)


def test_softmax_over_queries_and_other_products_are_no_attention() -> None:
    q, k, v = (symbol(960 + i, (KEYS, SIZE), name) for i, name in enumerate("qkv"))
    over_queries = einsum("kq,kd->qd", apply("softmax", einsum("qc,kc->kq", q, k)), v)
    scaled = einsum("qk,kd,->qd", apply("softmax", einsum("qc,kc->qk", q, k)), v, Scalar(2.0))
    summed = einsum("qk,kd->d", apply("softmax", einsum("qc,kc->qk", q, k)), v)
    for circuit in (over_queries, scaled, summed):
        check_value(circuit)
    assert found_attention(summed) is None and found_attention(scaled) is None


def test_probabilities_that_are_read_elsewhere_too() -> None:
    circuit = attention(causal())
    probabilities = circuit.children[0]
    check_value(circuit, probabilities)
    roots = recognised(circuit, probabilities)
    assert any(n.kind == "GeneralFunction" and isinstance(n.spec, Attention) for n in postorder(roots[0]))


def shared(first: str, heads: int = 2, each: int = 3, repeated: str | None = None) -> Circuit:
    """Attention in which `each` heads of queries read one of the keys and values, repeated as the strings say."""
    q = symbol(953, (heads * each, QUERIES, SIZE), "q")
    k, v = (
        Rearrange(symbol(954 + i, (heads, KEYS, SIZE), name), RearrangeSpec.from_string(text))
        for i, (name, text) in enumerate((("k", first), ("v", repeated or first)))
    )
    return einsum("hqk,hkd->hqd", apply("softmax", einsum("hqc,hkc->hqk", q, k)), v)


def test_keys_and_values_that_heads_share_are_not_repeated() -> None:
    circuit = shared("h k c -> (h 3) k c")
    node = found_attention(circuit)
    assert node is not None and [child.shape[0] for child in node.children] == [6, 2, 2]
    check_value(circuit)
    compiled = compile(bound(circuit))
    assert "enable_gqa" in compiled.source
    assert_close(compiled(), bound(circuit).evaluate("float64"), torch.float32)


def test_other_repeats_stay() -> None:
    for circuit in (shared("h k c -> (3 h) k c"), shared("h k c -> (h 3) k c", repeated="h k c -> (3 h) k c")):
        node = found_attention(circuit)
        assert node is not None and [child.shape[0] for child in node.children] == [6, 6, 6]
        check_value(circuit)


# -- rotary embeddings


def rotary(x: Circuit, cos: Circuit, sin: Circuit, half: Circuit | None = None, text: str = "hpc,pc->hpc") -> Circuit:
    return Add(einsum(text, x, cos), einsum(text, apply("rotate_half", half or x), sin))


HEADS_OF = symbol(956, (HEADS, QUERIES, SIZE), "x")


def test_rotary_embeddings_are_recognised() -> None:
    cos, sin = weight(QUERIES, SIZE, seed=7), weight(QUERIES, SIZE, seed=8)
    row = einsum("hc,c->hc", symbol(957, (HEADS, SIZE), "y"), weight(SIZE, seed=7))
    last = Add(row, einsum("hc,c->hc", apply("rotate_half", row.children[0]), weight(SIZE, seed=8)))
    for circuit in (rotary(HEADS_OF, cos, sin), Add(*reversed(rotary(HEADS_OF, cos, sin).children)), last):
        assert specs(circuit) == ["Rotary"]
        check_value(circuit)
        compiled = compile(bound(circuit))
        assert_close(compiled(), bound(circuit).evaluate("float64"), torch.float32)


NO_ROTARY: dict[str, Callable[[], Circuit]] = {
    "half of something else": lambda: rotary(
        HEADS_OF, weight(QUERIES, SIZE), weight(QUERIES, SIZE), symbol(958, (HEADS, QUERIES, SIZE), "y")
    ),
    "tables over heads": lambda: rotary(HEADS_OF, weight(HEADS, SIZE), weight(HEADS, SIZE), text="hpc,hc->hpc"),
    "tables that are given": lambda: rotary(
        HEADS_OF, symbol(959, (QUERIES, SIZE), "cos"), symbol(959, (QUERIES, SIZE), "cos")
    ),
    "a third summand": lambda: Add(*rotary(HEADS_OF, weight(QUERIES, SIZE), weight(QUERIES, SIZE)).children, HEADS_OF),
}


@pytest.mark.parametrize("name", NO_ROTARY)
def test_what_is_no_rotary_embedding(name: str) -> None:
    assert "Rotary" not in specs(NO_ROTARY[name]())
    check_value(NO_ROTARY[name]())


@pytest.mark.parametrize("shapes", [((4, 3), (4, 3)), ((3, 4), (2, 4)), ((3, 4), (2, 3, 4))])
def test_tables_that_do_not_fit_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    x, table = shapes
    with pytest.raises(ShapeError, match="rotary"):
        GeneralFunction(weight(*x), weight(*table), weight(*table), spec=Rotary(), name=None)


# -- products with weights


def test_linear_with_and_without_a_bias() -> None:
    product = einsum("sh,oh->so", DATA, weight(3, WIDTH))
    with_bias = Add(product, weight(3, seed=2))
    assert specs(product) == specs(with_bias) == ["Linear"]
    (new,) = recognised(with_bias)
    assert isinstance(new, GeneralFunction) and len(new.children) == 3
    check_value(product, with_bias)


def test_linear_of_several_axes_with_a_bias_of_one() -> None:
    x, w = symbol(970, (ROWS, 2, WIDTH), "x"), weight(2, 3, WIDTH)
    product = einsum("sgh,goh->so", x, w)
    check_value(Add(product, weight(3, seed=2)))
    heads = einsum("sh,noh->nso", DATA, weight(2, 3, WIDTH, seed=3))
    for bias in (weight(2, 1, 3, seed=4), weight(3, seed=5), weight(1, 1, 3, seed=6), weight(2, 1, 1, seed=7)):
        circuit = Add(heads, bias)
        assert specs(circuit) == ["Linear"]
        check_value(circuit)


def test_a_bias_that_is_no_weight_or_has_rows_stays_a_summand() -> None:
    product = einsum("sh,oh->so", DATA, weight(3, WIDTH))
    for other in (symbol(980, (3,), "y"), weight(ROWS, 3, seed=4), Scalar(0.5), weight(2, 1, 3, seed=4)):
        (new,) = recognised(Add(product, other))
        assert isinstance(new, Add)
        check_value(Add(product, other))


def test_of_two_products_each_takes_a_bias() -> None:
    products = [einsum("sh,oh->so", DATA, weight(3, WIDTH, seed=i)) for i in (1, 2)]
    circuit = Add(*products, weight(3, seed=3), weight(3, seed=4))
    (new,) = recognised(circuit)
    assert [len(child.children) for child in new.children] == [3, 3]
    check_value(circuit)


def test_a_product_that_is_read_elsewhere_is_not_computed_again_with_its_bias() -> None:
    product = einsum("si,oi->so", DATA, weight(5, WIDTH))
    with_bias = Add(product, weight(5, seed=2), name="with bias")
    for roots in [(with_bias, product), (with_bias, apply("tanh", product)), (Add(with_bias, apply("exp", product)),)]:
        assert specs(*roots) == ["Linear"]
    deeper = einsum("so,io->si", apply("tanh", with_bias), weight(WIDTH, 5, seed=3))
    assert specs(Add(deeper, weight(WIDTH, seed=4)), deeper, product) == ["Linear", "Linear"]


def test_a_bias_added_twice_and_a_product_added_twice() -> None:
    product, bias = einsum("sh,oh->so", DATA, weight(3, WIDTH)), weight(3, seed=2)
    check_value(Add(product, bias, bias), Add(product, product, bias))


NO_LINEAR: dict[str, Callable[[], Circuit]] = {
    "a factor": lambda: einsum("sh,oh,->so", DATA, weight(3, WIDTH), Scalar(2.0)),
    "no axis in common": lambda: einsum("sh,o->sho", DATA, weight(3)),
    "a common axis kept": lambda: einsum("sh,oh->soh", DATA, weight(3, WIDTH)),
    "an axis summed of one alone": lambda: einsum("sh,oh->o", DATA, weight(3, WIDTH)),
    "a repeated axis in the result": lambda: einsum("sh,oh->soo", DATA, weight(3, WIDTH)),
    "a diagonal": lambda: einsum("sh,hh->s", DATA, weight(WIDTH, WIDTH)),
    "two weights": lambda: einsum("sh,oh->so", weight(3, WIDTH), weight(2, WIDTH, seed=2)),
    "no weight": lambda: einsum("sh,oh->so", DATA, symbol(990, (3, WIDTH), "w")),
}


@pytest.mark.parametrize("name", NO_LINEAR)
def test_what_is_no_linear(name: str) -> None:
    assert specs(NO_LINEAR[name]()) == []
    check_value(NO_LINEAR[name]())


# -- all together


def test_golden(golden: Callable[[str, str], None]) -> None:
    cases = {
        "layer norm": layer_norm(),
        "RMS norm": rms_norm(),
        "causal attention": attention(causal()),
        "attention of heads that share keys": shared("h k c -> (h 3) k c"),
        "rotary embedding": rotary(HEADS_OF, weight(QUERIES, SIZE, seed=7), weight(QUERIES, SIZE, seed=8)),
        "linear": Add(einsum("sh,oh->so", DATA, weight(3, WIDTH)), weight(3, seed=2)),
        "no norm: another scale": NO_NORMS["another scale"](),
    }
    lines = []
    for name, circuit in cases.items():
        (before,) = Inline().run_many((circuit,), Origins())
        lines += [f"# {name}", circuit_text(before), "# becomes", circuit_text(*recognised(circuit)), ""]
    golden("kernels", "\n".join(lines))


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_kernels_run_in_every_dtype(dtype: str) -> None:
    mask = causal()
    mask[4, 0] = 0
    for circuit in (rms_norm(), layer_norm(), attention(causal()), attention(mask), attention()):
        compiled = compile(bound(circuit), dtype=dtype)
        assert_close(compiled(), bound(circuit).evaluate("float64"), compiled.dtype)


@given(SEEDS)
def test_random_circuits_keep_their_value(seed: int) -> None:
    circuit = random_circuit(Random(seed))
    assert_close(recognised(circuit)[0].evaluate("float64"), circuit.evaluate("float64"))
