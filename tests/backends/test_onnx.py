"""The onnx backend: every case in both modes of operators, models beside Hugging Face, and what the file is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
import pytest
import torch
from batches import WRONG_INPUTS, Batch, as_tuple
from harness import integers, symbol, tensor
from hypothesis import given, settings
from onnx.reference import ReferenceEvaluator
from random_models import gpt2, llama, logits, tokens_for
from splits import by_head_and_position, difference, unsplit
from tolerances import assert_close

from tapeout.backends.common.program import Program
from tapeout.backends.onnx import OnnxOptions
from tapeout.backends.onnx.file import write
from tapeout.backends.onnx.functions import NOT_IN_FLOAT64
from tapeout.backends.onnx.lower import lower
from tapeout.backends.onnx.sharing import parts
from tapeout.compiler import Compiled, compile, compile_many, load
from tapeout.ir import Add, Array, Circuit, Einsum, GeneralFunction, I, Index, Rearrange, Scalar, Symbol, postorder
from tapeout.ir.errors import (
    ArtefactError,
    DataError,
    LoweringError,
    TapeoutError,
    UnsupportedError,
)
from tapeout.testing import random_circuit
from tapeout.testing.cases import CASES
from tapeout.testing.strategies import SEEDS

F32, F64 = torch.float32, torch.float64
INPUTS = ["tokens", "labels"]
LENGTH = 5
MODELS: dict[str, Callable[..., Any]] = {"gpt2": gpt2, "llama": llama}

MODES: dict[str, OnnxOptions] = {
    "native": OnnxOptions(),
    "plain": OnnxOptions(opset=17, attention_op=False),
    "oldest": OnnxOptions(opset=13, attention_op=False),
}
"""Operators of today, and those that other runtimes have."""


def proto_of(compiled: Compiled) -> onnx.ModelProto:
    return onnx_ir.to_proto(model_of(compiled))


def model_of(compiled: Compiled) -> onnx_ir.Model:
    return compiled.executable.model  # type: ignore[attr-defined,no-any-return]


def check_file(proto: onnx.ModelProto) -> None:
    """ONNX's own checker, and its inference of shapes beside the shapes that the file states."""
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)


def check(circuits: list[Circuit], mode: str, dtype: torch.dtype, level: int) -> Compiled:
    batch = Batch.of(circuits)
    compiled = compile_many(batch.circuits, "onnx", batch.names, dtype, level=level, options=MODES[mode])
    found = as_tuple(compiled(**batch.values(dtype)))
    for value, expected in zip(found, batch.expected, strict=True):
        assert_close(value, expected if batch.names else expected[0], dtype)
    return compiled


# -- against the reference


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_every_case(dtype: torch.dtype, mode: str) -> None:
    for name, build in CASES.items():
        try:
            if dtype is F64 and name.removeprefix("function ") in NOT_IN_FLOAT64:
                with pytest.raises(UnsupportedError, match="in float64") as caught:
                    check([build(F64)], mode, dtype, level=0)
                assert "fx" in caught.value.hint
                continue
            for level in (0, 1):
                check_file(proto_of(check([build(F64)], mode, dtype, level)))
        except (AssertionError, TapeoutError, onnx.checker.ValidationError) as error:
            raise AssertionError(f"{name}: {error}") from error


@settings(max_examples=40)
@given(SEEDS)
def test_random_circuits(seed: int) -> None:
    compiled = check([random_circuit(Random(seed))], list(MODES)[seed % len(MODES)], F32, level=seed // 3 % 2)
    check_file(proto_of(compiled))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", MODELS)
def test_logits_are_hugging_faces(family: str, mode: str) -> None:
    model = MODELS[family]()
    compiled = compile(by_head_and_position(model, LENGTH), "onnx", ["tokens"], options=MODES[mode])
    for rows in (1, 7, 64):
        tokens = tokens_for(model, rows, LENGTH, seed=rows)
        assert_close(compiled(tokens=tokens), logits(model, tokens), F32)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", MODELS)
def test_a_logit_difference_is_that_of_the_reference(family: str, mode: str) -> None:
    circuit = difference(by_head_and_position(MODELS[family](), LENGTH))
    exact = compile(circuit, "fx", INPUTS, dtype=F64)
    for dtype in (F32, F64):
        compiled = compile(circuit, "onnx", INPUTS, dtype=dtype, options=MODES[mode])
        for rows in (1, 7, 64):
            values = data(rows)
            assert_close(compiled(**values), exact(**values), dtype)


def data(rows: int) -> dict[str, torch.Tensor]:
    return {"tokens": integers(rows, LENGTH, below=11, seed=rows), "labels": integers(rows, 2, below=11, seed=rows + 1)}


@cache
def compiled_model(family: str, mode: str = "native") -> Compiled:
    circuit = difference(by_head_and_position(MODELS[family](seed=40), LENGTH))
    return compile(circuit, "onnx", INPUTS, options=MODES[mode])


# -- the file


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", MODELS)
def test_the_file_is_sound_and_runs_in_onnxs_own_evaluator(family: str, mode: str, tmp_path: Path) -> None:
    compiled = compiled_model(family, mode)
    compiled.executable.save(tmp_path / "model.onnx")  # type: ignore[attr-defined]
    proto = onnx.load(tmp_path / "model.onnx")
    check_file(proto)
    assert proto.ir_version == 11 and proto.opset_import[0].version == MODES[mode].opset
    values = data(3)
    found = ReferenceEvaluator(proto).run(None, {name: value.numpy() for name, value in values.items()})
    assert_close(torch.from_numpy(np.asarray(found[0])), compiled(**values), F32)


@pytest.mark.parametrize("external", [False, True])
def test_a_written_model_is_the_model(external: bool, tmp_path: Path) -> None:
    model = model_of(compiled_model("gpt2"))
    write(model, tmp_path / "model.onnx", external)
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx"} | ({"model.onnx.data"} if external else set())
    back = onnx_ir.load(tmp_path / "model.onnx")
    assert set(back.graph.initializers) == set(model.graph.initializers)
    for name, value in model.graph.initializers.items():
        other = back.graph.initializers[name]
        assert value.const_value is not None and other.const_value is not None
        assert np.array_equal(value.const_value.numpy(), other.const_value.numpy()), name
    assert [node.name for node in back.graph] == [node.name for node in model.graph]
    assert [node.metadata_props for node in back.graph] == [node.metadata_props for node in model.graph]


def test_large_weights_are_written_as_protobuf_would_write_them(tmp_path: Path) -> None:
    x = symbol(1, (300,), "x")
    parts = [Array(tensor(300, 300 + i, seed=i, dtype=F32), f"w{i}") for i in range(3)]
    products = [Einsum.from_einsum_string("a,ab->b", x, part) for part in parts]
    compiled = compile_many(products, "onnx", ["x"])
    write(model_of(compiled), tmp_path / "model.onnx")
    written, plain = onnx.load(tmp_path / "model.onnx"), proto_of(compiled)
    assert {t.name: t.raw_data for t in written.graph.initializer if t.dims} == {
        t.name: t.raw_data for t in plain.graph.initializer if t.dims
    }
    weights = sum(part.value.nbytes for part in parts)
    assert (tmp_path / "model.onnx").stat().st_size < 1.01 * weights
    values = {"x": tensor(4, 300, dtype=F32)}
    for found, expected in zip(compiled(**values), [values["x"] @ part.value for part in parts], strict=True):
        assert_close(found, expected, F32)


ALONE = """
import json, sys
for name in ("torch", "tapeout", "onnx", "onnx_ir"):
    sys.modules[name] = None
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
given = {name: numpy.array(value) for name, value in json.load(sys.stdin).items()}
print(json.dumps(session.run(None, given)[0].tolist()))
"""


@pytest.mark.parametrize("mode", MODES)
def test_the_file_runs_where_there_are_only_onnxruntime_and_numpy(mode: str, tmp_path: Path) -> None:
    compiled, values = compiled_model("llama", mode), data(3)
    compiled.executable.save(tmp_path / "model.onnx")  # type: ignore[attr-defined]
    given = json.dumps({name: value.tolist() for name, value in values.items()})
    command = [sys.executable, "-I", "-c", ALONE, str(tmp_path / "model.onnx")]
    done = subprocess.run(command, input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_close(torch.tensor(json.loads(done.stdout)), compiled(**values), F32)


def test_values_are_called_after_the_circuit_and_nodes_say_where_they_come_from() -> None:
    graph = model_of(compiled_model("gpt2")).graph
    names = {value.name for node in graph for value in node.outputs}
    assert {"a0.norm", "m1.norm", "a1.input", "final.input", "logit_diff"} <= names
    assert [value.name for value in graph.inputs] == INPUTS and [value.name for value in graph.outputs] == [
        "logit_diff"
    ]
    assert {"t.w.tok_embeds", "a0.w.q", "m1.w.proj_in"} <= set(graph.initializers)
    assert all(node.metadata_props["origin"] and node.name == node.outputs[0].name for node in graph)
    (node,) = [node for node in graph if node.name == "a1.input"]
    assert node.metadata_props["origin"] == "a1.input"


@pytest.mark.parametrize(("family", "most"), [("gpt2", 16), ("llama", 37)])
def test_a_layer_is_few_nodes(family: str, most: int) -> None:
    """Of the model split by head and position."""
    counts = []
    layers = {"gpt2": "n_layer", "llama": "num_hidden_layers"}[family]
    for count in (2, 3):
        circuit = difference(by_head_and_position(MODELS[family](**{layers: count}), LENGTH))
        counts.append(len(model_of(compile(circuit, "onnx", INPUTS)).graph))
    assert counts[1] - counts[0] <= most


def test_native_operators_are_used() -> None:
    def operators(family: str) -> set[str]:
        return {node.op_type for node in model_of(compiled_model(family)).graph}

    assert operators("gpt2") == {
        "Gather", "Add", "LayerNormalization", "Reshape", "Gemm", "Attention", "Gelu", "Mul", "ReduceSum",
    }  # fmt: skip
    assert {"RMSNormalization", "Attention", "Gemm"} <= operators("llama")


def test_keys_and_values_of_several_queries_are_not_repeated() -> None:
    for mode in MODES:
        assert "Expand" not in {node.op_type for node in model_of(compiled_model("llama", mode)).graph}


def test_source_reads_as_it_would_be_written(golden: Callable[[str, str], None]) -> None:
    for family in MODELS:
        golden(f"onnx_source_{family}", compiled_model(family).source)


# -- weights


def test_weights_are_the_models_own_memory_and_none_is_there_twice() -> None:
    model = gpt2(seed=41)
    compiled = compile(by_head_and_position(model, LENGTH), "onnx", ["tokens"])
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    tensors = [value.const_value.raw for value in model_of(compiled).graph.initializers.values()]  # type: ignore[union-attr]
    large = [value for value in tensors if value.numel() > 8]
    assert all(value.untyped_storage().data_ptr() in own for value in large)
    assert sum(value.nbytes for value in large) <= sum(p.nbytes for p in model.parameters())
    assert compiled.packed_bytes == 0


def test_a_matrix_that_is_looked_up_and_multiplied_is_held_once() -> None:
    """Tied embeddings: rows of it for the tokens, its transpose for the logits."""
    table = Array(tensor(11, 4, dtype=F32), "table")
    tokens = Symbol((3,), symbol(1, (3,), "tokens").uuid, "tokens", torch.int64)
    rows = GeneralFunction.gen_index(table, tokens, 0)
    for weight in (table, Rearrange.from_string(table, "a b -> b a")):
        other = "sb,ab->sa" if weight is table else "sb,ba->sa"
        compiled = compile(Einsum.from_einsum_string(other, rows, weight), "onnx", ["tokens"])
        shapes = [
            tuple(value.shape) for value in model_of(compiled).graph.initializers.values() if len(value.shape) > 1
        ]  # type: ignore[arg-type,union-attr]
        assert shapes == [(11, 4)]
        given_ = integers(2, 3, below=11)
        assert_close(compiled(tokens=given_), table.value[given_] @ table.value.T, F32)


def test_constants_of_one_content_are_held_once() -> None:
    x, value = symbol(1, (3,), "x"), tensor(3, 3)
    pair = (Array(value, "w"), Array(value.clone(), "v"))
    circuit = Add(*(Einsum.from_einsum_string("a,ab->b", x, each) for each in pair))
    compiled = compile(circuit, "onnx", ["x"], dtype=F64, level=0)
    assert [name for name, v in model_of(compiled).graph.initializers.items() if v.shape == (3, 3)] == ["w"]


def test_weights_of_variants_that_are_part_of_others_are_stored_once() -> None:
    """A model, and the same with one head left out at one position: it reads parts of matrices that are there."""
    model = gpt2(seed=44, n_head=4, n_embd=64, n_inner=256)
    plain = difference(by_head_and_position(model, LENGTH))
    patched = plain.update("a0_h1_t3", lambda node: Scalar(0.0, node.shape))
    alone, both = compile(plain, "onnx", INPUTS), compile_many([plain, patched], "onnx", INPUTS)

    def stored(compiled: Compiled) -> int:
        values = model_of(compiled).graph.initializers.values()
        return sum(value.const_value.nbytes for value in values)  # type: ignore[union-attr]

    assert stored(both) < 1.01 * stored(alone)
    check_file(proto_of(both))
    expected = compile_many([plain, patched], "fx", INPUTS)(**data(3))
    for found, wanted in zip(both(**data(3)), expected, strict=True):
        assert_close(found, wanted, F32)


@given(SEEDS)
def test_parts_of_memory_are_found_and_are_what_they_were(seed: int) -> None:
    rng = Random(seed)
    whole = torch.arange(24 * 32, dtype=F64).reshape(rng.choice([(24, 32), (32, 24), (4, 6, 32), (768,)]))
    tensors = [whole]
    for _ in range(3):
        part = rng.choice(tensors)
        for axis, size in enumerate(part.shape):
            start = rng.randrange(max(1, size - 8))
            part = part.narrow(axis, start, rng.randint(min(8, size - start), size - start))
        tensors.append(part)
    for i, found in parts(tensors).items():
        seen = tensors[found.whole].reshape(found.shape)
        for axis, (start, stop) in enumerate(zip(found.starts, found.stops, strict=True)):
            seen = seen.narrow(axis, start, stop - start)
        assert torch.equal(seen.reshape(tensors[i].shape), tensors[i])
    assert all(i in parts(tensors) for i, t in enumerate(tensors[1:], 1) if t.nbytes > 1024 and whole.ndim == 2)


def test_a_repeated_constant_is_held_once_and_repeated_when_it_runs() -> None:
    x = symbol(1, (100, 40), "x")
    row = Array(tensor(40, dtype=F32), "row")
    circuit = Add(x, Rearrange.from_string(row, "a -> 100 a"))
    compiled = compile(circuit, "onnx", ["x"], level=0)
    assert sum(v.const_value.nbytes for v in model_of(compiled).graph.initializers.values()) < 500  # type: ignore[union-attr]
    value = tensor(2, 100, 40, dtype=F32)
    assert_close(compiled(x=value), value + row.value, F32)


# -- running


@pytest.mark.parametrize("what", WRONG_INPUTS)
def test_wrong_inputs_are_errors(what: str) -> None:
    values, error = WRONG_INPUTS[what]
    with pytest.raises(error):
        compiled_model("gpt2")(**values)


def test_tensors_of_every_sort_are_taken() -> None:
    compiled, plain = compiled_model("gpt2"), data(8)
    expected = compiled(**plain)
    strided = {name: torch.stack([value, value], -1)[..., 0] for name, value in plain.items()}
    assert torch.equal(compiled(**strided), expected)
    with torch.inference_mode():
        assert torch.equal(compiled(**{name: value.clone() for name, value in plain.items()}), expected)
    assert torch.equal(compiled(**{name: value[1:] for name, value in plain.items()}), expected[1:])
    x = symbol(1, (2,), "x")
    twice = compile(Add(x, x), "onnx", ["x"])
    out = twice(x=torch.ones(3, 2, requires_grad=True))
    assert out.tolist() == [[2.0, 2.0]] * 3 and not out.requires_grad


def test_results_do_not_share_memory() -> None:
    compiled = compiled_model("gpt2")
    first = compiled(**data(3))
    kept = first.clone()
    compiled(**data(4))
    assert torch.equal(first, kept)


def test_integers_nothing_and_constants_come_out_too() -> None:
    tokens = Symbol((4,), symbol(9, (4,), "tokens").uuid, "tokens", torch.int64)
    x = symbol(2, (4,), "x")
    several = [Add(tokens, tokens), Index(x, I[2:2]), Scalar(2.0, (2,)), x, x]
    compiled = compile_many(several, "onnx", ["tokens", "x"])
    given_ = {"tokens": torch.tensor([[1, 2, 3, 4]] * 3), "x": tensor(3, 4, dtype=F32)}
    doubled, empty, number, one, other = compiled(**given_)
    assert doubled.dtype is torch.int64 and doubled.tolist() == [[2, 4, 6, 8]] * 3
    assert empty.shape == (3, 0) and number.tolist() == [[2.0, 2.0]] * 3
    assert torch.equal(one, given_["x"]) and torch.equal(other, given_["x"])
    assert one.data_ptr() != other.data_ptr()


def test_an_index_that_is_out_of_range_is_an_error() -> None:
    """One that is computed: inputs are checked before they get here."""
    x = symbol(1, (3,), "x")
    table = Array(tensor(4, dtype=F32), "table")
    where = GeneralFunction.new_cast(x, output=_int64())
    compiled = compile(GeneralFunction.gen_index(table, where, 0), "onnx", ["x"])
    assert compiled(x=torch.tensor([[0.0, 3.0, 1.0]])).shape == (1, 3)
    with pytest.raises(DataError, match="ONNX Runtime failed") as caught:
        compiled(x=torch.tensor([[0.0, 9.0, 1.0]]))
    assert "out of range" in caught.value.hint


def _int64() -> Any:
    from tapeout.ir import TorchDeviceDtypeOp

    return TorchDeviceDtypeOp(dtype=torch.int64)


def test_parts_of_a_batch_that_fit_in_memory() -> None:
    circuit = difference(by_head_and_position(gpt2(), LENGTH))
    whole = compile(circuit, "onnx", INPUTS)
    parts = compile(circuit, "onnx", INPUTS, max_memory=whole.cost(2).peak_bytes)
    assert_close(parts(**data(7)), whole(**data(7)), F32)


def test_what_depends_on_bound_prompts_is_computed_at_each_call(tmp_path: Path) -> None:
    """And not when the model is loaded: they are inputs of the file with a default value."""
    from tapeout.tasks.ioi.circuit import bind_dataset

    model, values = gpt2(seed=43), data(6)
    circuit = difference(by_head_and_position(model, LENGTH))
    bound = compile(bind_dataset(circuit, *values.values()), "onnx")
    expected = compile(circuit, "fx", INPUTS)(**values)
    assert_close(bound(), expected, F32)
    bound.executable.save(tmp_path / "model.onnx")  # type: ignore[attr-defined]
    check_file(onnx.load(tmp_path / "model.onnx"))
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    session = ort.InferenceSession(str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    assert session.get_inputs() == [] and session.get_overridable_initializers()
    assert_close(torch.from_numpy(session.run(None, {})[0]), expected, F32)
    left = {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    assert {"Gemm", "LayerNormalization"} <= left


# -- options


def test_options_by_name_and_by_dataclass() -> None:
    circuit = difference(by_head_and_position(gpt2(), LENGTH))
    for options in ({"threads": 1, "arena": False}, OnnxOptions(threads=1, arena=False)):
        compiled = compile(circuit, "onnx", INPUTS, options=options)  # type: ignore[arg-type]
        assert compiled.executable.options == OnnxOptions(threads=1, arena=False)  # type: ignore[attr-defined]
        session = compiled.executable._session.get_session_options()  # type: ignore[attr-defined]
        assert (session.intra_op_num_threads, session.enable_cpu_mem_arena) == (1, False)
        assert compiled(**data(2)).shape == (2,)


@pytest.mark.parametrize(
    ("backend", "options", "hint"),
    [
        ("onnx", {"opsets": 17}, "there are opset, attention_op"),
        ("onnx", {"opset": 12}, "from 13 to 26"),
        ("onnx", {"opset": 27}, "from 13 to 26"),
        ("onnx", {"threads": 0}, "1 or more"),
        ("onnx", "fast", "there are opset"),
        ("fx", {"opset": 17}, "leave them out"),
    ],
)
def test_wrong_options_are_errors(backend: str, options: Any, hint: str) -> None:
    x = symbol(1, (3,), "x")
    with pytest.raises(UnsupportedError) as caught:
        compile(Add(x, x), backend, ["x"], options=options)
    assert hint in caught.value.hint


def test_an_opset_that_cannot_express_the_circuit_names_the_node() -> None:
    circuit = difference(by_head_and_position(gpt2(), LENGTH))
    with pytest.raises(UnsupportedError, match=r"opset 17 cannot express .*Attention") as caught:
        compile(circuit, "onnx", INPUTS, options={"opset": 17})
    assert "attention_op=False" in caught.value.hint
    assert any("attention" in fact for fact in [*caught.value.facts, *getattr(caught.value, "__notes__", [])])


@pytest.mark.parametrize("opset", range(13, 27))
def test_every_opset(opset: int) -> None:
    for family in MODELS:
        circuit = difference(by_head_and_position(MODELS[family](), LENGTH))
        compiled = compile(circuit, "onnx", INPUTS, options={"opset": opset, "attention_op": opset >= 23})
        check_file(proto_of(compiled))
        assert_close(compiled(**data(3)), compile(circuit, "fx", INPUTS)(**data(3)), F32)


def test_bfloat16_on_the_processor_is_refused_with_a_hint() -> None:
    x = symbol(1, (3,), "x")
    with pytest.raises(UnsupportedError, match="no bfloat16 kernels") as caught:
        compile(Add(x, x), "onnx", ["x"], dtype="bfloat16")
    assert "float32" in caught.value.hint


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_that_is_not_there_is_an_error_and_no_fallback() -> None:
    x = symbol(1, (3,), "x")
    compiled = compile(Add(x, x), "onnx", ["x"])
    for attempt in (lambda: compile(Add(x, x), "onnx", ["x"], device="cuda"), lambda: compiled.to("cuda")):
        with pytest.raises(UnsupportedError, match=r"torch .* sees no GPUs") as caught:
            attempt()
        assert "a build of torch for CUDA" in caught.value.hint
    with pytest.raises(UnsupportedError, match="cannot use cuda") as caught:  # where torch has one, and it has none
        compiled.executable.to(torch.device("cuda"))
    assert "onnxruntime-gpu" in caught.value.hint
    with pytest.raises(UnsupportedError, match="does not run on meta"):
        compiled.to("meta")
    assert compiled.to("cpu")(x=torch.ones(1, 3)).tolist() == [[2.0, 2.0, 2.0]]


# -- refusals, and files that are none


def test_what_cannot_be_lowered_says_why() -> None:
    with pytest.raises(LoweringError, match="free and no input"):
        lower(Program([symbol(1, (3,), "x")]), OnnxOptions())


@pytest.mark.parametrize("change", [lambda b: b"", lambda b: b"hello", lambda b: b[: len(b) // 2]])
def test_a_file_that_is_no_model_is_refused(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    from tapeout.backends.onnx.executable import load as load_model

    path = tmp_path / "model.onnx"
    compiled_model("gpt2").executable.save(path)  # type: ignore[attr-defined]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ArtefactError, match="no ONNX model"):
        load_model(path, torch.device("cpu"), OnnxOptions())
    path.unlink()
    with pytest.raises(ArtefactError, match="no ONNX model"):
        load_model(path, torch.device("cpu"), OnnxOptions())


def test_an_artefact_keeps_its_options_and_its_external_data(tmp_path: Path) -> None:
    circuit = difference(by_head_and_position(gpt2(), LENGTH))
    compiled = compile(circuit, "onnx", INPUTS, options=OnnxOptions(external_data=True, threads=1))
    compiled.save(tmp_path / "one")
    assert (tmp_path / "one" / "model.onnx.data").is_file()
    loaded = load(tmp_path / "one")
    assert loaded.executable.options == compiled.executable.options  # type: ignore[attr-defined]
    loaded.save(tmp_path / "two")
    again = load(tmp_path / "two")
    for each in (loaded, again):
        assert torch.equal(each(**data(3)), compiled(**data(3)))
    assert loaded.source.splitlines()[-1] == compiled.source.splitlines()[-1]


def test_the_unsplit_model_gives_the_same_file() -> None:
    model = gpt2(seed=42)
    split, whole = (
        compile(difference(each), "onnx", INPUTS)
        for each in (by_head_and_position(model, LENGTH), unsplit(model, LENGTH))
    )
    assert [node.op_type for node in model_of(split).graph] == [node.op_type for node in model_of(whole).graph]
    assert sum(1 for _ in postorder(*split.roots)) == sum(1 for _ in postorder(*whole.roots))
