"""Sharing rows: the values of unshared rows, for the work of the distinct prefixes; nothing is computed beforehand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from random_models import fresh, gpt2, llama
from splits import by_head_and_position, difference
from tolerances import assert_close

from tapeout.compiler import Compiled, compile
from tapeout.ir import Array, Circuit, Einsum, GeneralFunction, Scalar, circuit_text, postorder
from tapeout.ir.nodes.functions import GenIndex
from tapeout.passes.execution import Origins
from tapeout.passes.inline import Inline
from tapeout.passes.share_rows import ShareRows
from tapeout.tasks.ioi.circuit import bind_dataset

LENGTH = 8
MODELS: dict[str, Callable[[], Any]] = {"gpt2": lambda: gpt2(n_head=4, n_embd=16), "llama": llama}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> tuple[Any, Circuit]:
    """A model, and its logit difference on one prompt."""
    model = fresh(MODELS[request.param]())
    return model, difference(by_head_and_position(model, LENGTH))


def data(rows: int, words: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of few words, which begin alike, and labels."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(words, (rows, LENGTH), generator=generator),
        torch.randint(11, (rows, 2), generator=generator),
    )


def prefixes(tokens: torch.Tensor) -> float:
    """Distinct prefixes as a part of all places."""
    found = {tuple(row[: i + 1]) for row in tokens.tolist() for i in range(tokens.shape[1])}
    return len(found) / tokens.numel()


def both(circuit: Circuit, monkeypatch: pytest.MonkeyPatch) -> tuple[Compiled, Compiled]:
    """Compiled with rows shared, and without."""
    shared = compile(circuit, dtype="float64")
    monkeypatch.setenv("TAPEOUT_SKIP", "share_rows")
    return shared, compile(circuit, dtype="float64")


def changed(compiled: Compiled) -> bool:
    return any(record.changed for record in compiled.passes if record.name == "share_rows")


@pytest.mark.parametrize(("rows", "words"), [(9, 2), (20, 3), (40, 2)])
def test_values_are_those_of_unshared_rows_and_work_falls_with_the_prefixes(
    model: tuple[Any, Circuit], rows: int, words: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, labels = data(rows, words, seed=rows)
    circuit = bind_dataset(model[1], tokens, labels)
    shared, unshared = both(circuit, monkeypatch)
    assert_close(shared(), circuit.evaluate("float64"))
    assert_close(unshared(), shared())
    part = shared.cost().flops / unshared.cost().flops
    assert prefixes(tokens) < part + 0.02 and part < prefixes(tokens) + 0.15  # attention is dense


def test_rows_that_are_all_different_from_the_start_are_left_alone(model: tuple[Any, Circuit]) -> None:
    tokens, labels = data(8, 11)
    tokens[:, 0] = torch.arange(8)
    circuit = bind_dataset(model[1], tokens, labels)
    compiled = compile(circuit, dtype="float64")
    assert not changed(compiled)
    assert_close(compiled(), circuit.evaluate("float64"))


def test_nothing_is_computed_when_compiling(model: tuple[Any, Circuit]) -> None:
    """What the module holds is the model's own memory, the masks and tables of the circuit, or integers."""
    whole, circuit = model
    tokens, labels = data(20, 2)
    compiled = compile(bind_dataset(circuit, tokens, labels), dtype="float32")
    known = {parameter.untyped_storage().data_ptr() for parameter in whole.parameters()}
    known |= {n.value.untyped_storage().data_ptr() for n in postorder(circuit) if isinstance(n, Array)}
    module = compiled.executable.module  # type: ignore[attr-defined]
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if value.is_floating_point():
            assert value.untyped_storage().data_ptr() in known or bool((value.abs() == 1).all()), name
        else:
            assert value.ndim <= 2 and int(value.max()) < max(tokens.numel(), 20), name


def test_every_call_computes(model: tuple[Any, Circuit]) -> None:
    """A weight that is changed in the module changes the answer."""
    compiled = compile(bind_dataset(model[1], *data(20, 2)), dtype="float64")
    before = compiled()
    module = compiled.executable.module  # type: ignore[attr-defined]
    with torch.no_grad():
        next(p for name, p in module.named_parameters() if "proj_in" in name).mul_(2)
    assert float((compiled() - before).abs().max()) > 1e-6


def test_a_mask_that_is_not_causal_is_not_shared(model: tuple[Any, Circuit], monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(node: Circuit) -> Circuit:
        assert isinstance(node, Array)
        value = node.value.clone()
        value[2, 5] = 1  # position 2 looks at a later one
        return Array(value, node.name)

    open_eyed = model[1].update("t.a.c.causal_mask", opened)
    assert open_eyed is not model[1]
    circuit = bind_dataset(open_eyed, *data(20, 2))
    shared, unshared = both(circuit, monkeypatch)
    assert_close(shared(), circuit.evaluate("float64"))
    assert_close(unshared(), circuit.evaluate("float64"))
    assert shared.cost().flops > 0.85 * unshared.cost().flops  # only what comes before the first attention


def test_what_mixes_rows_or_positions_is_not_shared_beyond_it(
    model: tuple[Any, Circuit], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads patched with their mean over the dataset, with the row before, or with the position behind."""
    tokens, labels = data(20, 2)
    bound = bind_dataset(model[1], tokens, labels)

    def mean(node: Circuit) -> Circuit:
        return Einsum.from_einsum_string("nsd,->sd", node, Scalar(1 / 20)).expand_at_axes([0], [20])

    def turned(axis: int) -> Callable[[Circuit], Circuit]:
        def patch(node: Circuit) -> Circuit:
            order = torch.arange(int(node.shape[axis])).roll(-1)  # type: ignore[arg-type]
            return node.index([slice(None)] * axis + [order])

        return patch

    for patch in (mean, turned(0), turned(1)):
        circuit = bound.update("a0.h1", patch)
        assert circuit is not bound
        shared, _ = both(circuit, monkeypatch)
        monkeypatch.delenv("TAPEOUT_SKIP")
        assert_close(shared(), circuit.evaluate("float64"))


def test_several_circuits_and_values_on_the_way(model: tuple[Any, Circuit]) -> None:
    from tapeout.compiler import compile_many

    bound = bind_dataset(model[1], *data(20, 2))
    nodes = [bound, *(bound.get_unique(name) for name in ("a0.h1", "m0", "a1.input", "final.input"))]
    for value, node in zip(compile_many(nodes, dtype="float64")(), nodes, strict=True):
        assert_close(value, node.evaluate("float64"))


def test_golden(golden: Callable[[str, str], None]) -> None:
    tokens = Array(torch.tensor([[0, 1, 2], [0, 1, 0], [0, 1, 1]]), "tokens")
    table = Array(torch.arange(12, dtype=torch.float64).reshape(3, 4), "table")
    embedded = GeneralFunction(table, tokens, spec=GenIndex(0))
    act = GeneralFunction.new_by_name(embedded, spec_name="tanh")
    before = Inline().run_many((act, act.index((slice(None), -1))), Origins())
    after = ShareRows().run_many(before, Origins())
    golden("share_rows", "\n".join([circuit_text(*before), "# becomes", circuit_text(*after)]))
    for new, old in zip(after, before, strict=True):
        assert_close(new.evaluate("float64"), old.evaluate("float64"))
