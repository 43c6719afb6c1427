"""The inductor backend: the catalogue as one module, one graph for every batch size, and what stands in its way."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import pytest
import torch
from batches import WRONG_INPUTS, Batch, as_tuple
from harness import symbol
from random_models import gpt2
from splits import by_head_and_position, difference
from tolerances import assert_close

from tapeout.backends.common import cuda_graphs
from tapeout.backends.common.program import Program
from tapeout.backends.common.rows import filled_up, joined, split_rows
from tapeout.backends.fx import executable as fx_executable
from tapeout.backends.inductor import executable as inductor_executable
from tapeout.backends.inductor import freezing
from tapeout.backends.inductor.aot import AotExecutable
from tapeout.backends.inductor.executable import InductorExecutable, check_compiler
from tapeout.compiler import Compiled, compile, compile_many
from tapeout.ir import Add, Concat, Einsum, Symbol
from tapeout.ir.errors import LoweringError, UnsupportedError
from tapeout.ir.sizes import BATCH, dim
from tapeout.testing import random_circuit
from tapeout.testing.cases import CASES

F32, F64 = torch.float32, torch.float64
INPUTS = ["tokens", "labels"]


def graphs() -> int:
    """How many graphs torch.compile has made in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


@cache
def catalogue() -> tuple[Batch, Compiled]:
    """All cases and some random circuits: one module, because each compilation takes long."""
    randoms = [random_circuit(Random(seed), size=8) for seed in range(20)]
    batch = Batch.of([*(build(F64) for build in CASES.values()), *randoms])
    return batch, compile_many(batch.circuits, "inductor", batch.names, dtype=F64)


@cache
def model() -> tuple[Compiled, Compiled]:
    circuit = difference(by_head_and_position(gpt2(), 5))
    return compile(circuit, "inductor", INPUTS, batch=5), compile(circuit, "fx", INPUTS)


def tokens(rows: int) -> dict[str, torch.Tensor]:
    return {"tokens": torch.randint(11, (rows, 5)), "labels": torch.randint(11, (rows, 2))}


@pytest.mark.slow
@pytest.mark.parametrize("rows", [3, 1, 8])
def test_the_catalogue(rows: int) -> None:
    batch, compiled = catalogue()
    before = graphs()
    found = as_tuple(compiled(**batch.values(F64, rows)))
    for value, expected in zip(found, batch.wanted(rows), strict=True):
        assert_close(value, expected, F64)
    assert graphs() == before


@pytest.mark.slow
def test_the_catalogue_ahead_of_time(tmp_path: Path) -> None:
    batch, compiled = catalogue()
    compiled.executable.save(tmp_path / "model.pt2")  # type: ignore[attr-defined]
    loaded = replace(compiled, executable=AotExecutable(tmp_path / "model.pt2", torch.device("cpu")))
    for rows in (3, 1, 8):
        found = as_tuple(loaded(**batch.values(F64, rows)))
        for value, expected in zip(found, batch.wanted(rows), strict=True):
            assert_close(value, expected, F64)


@pytest.mark.slow
def test_one_graph_serves_every_batch_size() -> None:
    inductor, fx = model()
    before = graphs()
    for rows in (1, 7, 64, 100, 1, 2, 16):
        values = tokens(rows)
        assert_close(inductor(**values), fx(**values), F32)
    assert graphs() == before


@pytest.mark.slow
def test_sizes_besides_the_batch() -> None:
    """They may depend on one another, so that a call compiles; then one graph serves all but sizes of 1."""
    past, new = (Symbol((BATCH, dim(name), 4), uuid4(), name) for name in ("past", "new"))
    grid = Symbol((dim("new"), dim("all")), uuid4(), "grid")
    both = Concat(past, new, axis=1)
    circuit = Einsum((new, (0, 1, 2)), (both, (0, 3, 2)), (grid, (1, 3)), out_axes=(0, 1))
    inputs = (past, new, grid)
    backends = inductor_executable, fx_executable
    executables = [each.build(Program([circuit], inputs))[0] for each in backends]
    counts = [graphs()]
    for rows, before, window in [(3, 4, 2), (1, 2, 5), (7, 3, 3), (3, 4, 1), (2, 6, 1), (2, 1, 6), (8, 2, 2)]:
        shapes = (rows, before, 4), (rows, window, 4), (window, before + window)
        values = [torch.randn(shape) for shape in shapes]
        found, expected = (executable(*values) for executable in executables)
        assert_close(found, expected, F32)
        counts.append(graphs())
    assert [after - before for before, after in pairwise(counts)] == [1, 0, 0, 1, 0, 1, 0]


@pytest.mark.slow
def test_weights_are_packed_and_the_copies_counted() -> None:
    """Every weight of a linear product once, beside the module's own; none where nothing can be packed."""
    from torch._dynamo.utils import counters

    if not torch.backends.mkldnn.is_available():
        pytest.skip("oneDNN is not there, and nothing is packed")
    circuit = difference(by_head_and_position(gpt2(7), 5))
    before = counters["inductor"]["mkldnn_linear_weight_pack_matcher_count"]
    compiled = compile(circuit, "inductor", INPUTS)
    module: Any = compiled.executable.module  # type: ignore[attr-defined]
    linears = [node for node in module.graph.nodes if node.target is torch.nn.functional.linear]
    assert counters["inductor"]["mkldnn_linear_weight_pack_matcher_count"] - before == len(linears) > 0
    weights = [module.get_parameter(node.args[1].target) for node in linears]
    assert compiled.packed_bytes == sum(each.numel() * each.element_size() for each in weights)
    assert compiled.cost(3).packed_bytes == compiled.packed_bytes
    assert freezing.packed_bytes(module.double(), torch.device("cpu")) == 0
    assert freezing.packed_bytes(module.float(), torch.device("cuda")) == 0


@pytest.mark.slow
def test_one_graph_serves_tensors_of_every_sort() -> None:
    """Views, tensors made in inference mode, calls in inference mode and with gradients."""
    inductor, fx = model()
    before, plain = graphs(), tokens(8)
    expected = fx(**plain)
    strided = {name: torch.stack([value, value], -1)[..., 0] for name, value in plain.items()}
    assert_close(inductor(**strided), expected, F32)
    with torch.inference_mode():
        made = {name: value.clone() for name, value in plain.items()}
        assert_close(inductor(**made), expected, F32)
        assert_close(inductor(**plain), expected, F32)
    assert_close(inductor(**made), expected, F32)
    assert_close(inductor(**{name: value[1:] for name, value in plain.items()}), expected[1:], F32)
    assert graphs() == before


@pytest.mark.slow
@pytest.mark.parametrize("what", WRONG_INPUTS)
def test_wrong_inputs_are_errors(what: str) -> None:
    values, error = WRONG_INPUTS[what]
    with pytest.raises(error):
        model()[0](**values)


@pytest.mark.slow
def test_one_tensor_for_two_inputs_compiles_nothing_anew() -> None:
    x, y = symbol(1, (2,), "x"), symbol(2, (2,), "y")
    compiled = compile(Add(x, y), "inductor", ["x", "y"], batch=1)
    assert compiled.executable.rows == 2  # type: ignore[attr-defined]
    before, ones = graphs(), torch.ones(3, 2)
    assert compiled(x=ones, y=ones).tolist() == [[2.0, 2.0]] * 3
    assert graphs() == before
    assert compiled.to("cpu")(x=ones, y=2 * ones).tolist() == [[3.0, 3.0]] * 3


def test_without_a_compiler_it_says_what_to_install() -> None:
    from torch._inductor import config

    check_compiler()
    x = symbol(1, (2,), "x")
    with (
        config.patch({"cpp.cxx": (None, "no-such-compiler")}),
        pytest.raises(UnsupportedError, match=r"no C\+\+ compiler") as caught,
    ):
        compile(Add(x, x), "inductor", ["x"])
    assert "apt-get install" in caught.value.hint


def test_what_inductor_refuses_is_a_lowering_error() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(torch.matmul, (x, x)))
    module = torch.fx.GraphModule(torch.nn.Module(), graph)
    with pytest.raises(LoweringError, match="Inductor cannot compile"):
        InductorExecutable(module, [symbol(1, (4, 2, 3), "x")], torch.device("cpu"))


# -- filling up, buckets


def test_batches_are_filled_up_with_their_first_row() -> None:
    x, y = torch.arange(6).reshape(3, 2), torch.arange(3)
    filled = filled_up([x, y], 5)
    assert filled[0].tolist() == [[0, 1], [2, 3], [4, 5], [0, 1], [0, 1]]
    assert filled[1].tolist() == [0, 1, 2, 0, 0]
    assert filled_up([x], 2)[0] is x


def test_batches_are_computed_in_parts_and_joined() -> None:
    x, y = torch.arange(5), torch.arange(10).reshape(5, 2)
    parts = split_rows([x, y], 2)
    assert [[len(value) for value in part] for part in parts] == [[2, 2], [2, 2], [1, 1]]
    whole: Any = joined([tuple(part) for part in parts])
    assert torch.equal(whole[0], x)
    assert torch.equal(whole[1], y)
    assert torch.equal(joined([part[0] for part in parts]), x)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_graphs_without_a_gpu_say_so() -> None:
    with pytest.raises(UnsupportedError, match="need a CUDA device"):
        cuda_graphs.CudaGraphs(lambda x: x, [2], torch.device("cuda"))
