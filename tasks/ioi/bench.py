"""How fast the IOI logit difference is: every way of computing it, as a multiple of the limit.

The limit is the FLOPs that the answer needs (the last block computes only the last position, the unembedding
only two tokens) divided by the machine's matmul rate on (1600 x 768) @ (768 x 3072), measured in the same run: of
torch's two libraries for it (MKL, and oneDNN with a packed weight) that of the faster one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from tapeout.compiler import compile
from tapeout.compiler.backends import builder
from tapeout.compiler.compile import DTYPES
from tapeout.compiler.measure import measure
from tapeout.ir.dtypes import as_dtype
from tapeout.ir.errors import TypeMismatchError, UnsupportedError
from tapeout.tasks.ioi.circuit import bind_dataset
from tapeout.tasks.ioi.exported import exported_logit_diff
from tapeout.tasks.ioi.setting import Setting, hugging_face_logit_diff

MATMUL = (1600, 768, 3072)
"""The product whose rate is the machine's: rows, contracted, columns."""

_MATMULS = 10
Call = Callable[[], torch.Tensor]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Way:
    """One way of computing the answer.

    Attributes:
        name: what it is.
        seconds: median time of a call.
        multiple: that, as a multiple of the limit.
        max_abs_error: largest difference from the values in float64.
        compile_seconds: what making it took; None where nothing is made.
    """

    name: str
    seconds: float
    multiple: float
    max_abs_error: float
    compile_seconds: float | None


@dataclass(frozen=True, slots=True)
class BenchResult:
    """The table.

    Attributes:
        model: the model.
        prompts: how many.
        flops: floating-point operations that the answer needs.
        flops_per_second: the machine's rate.
        limit_seconds: the first divided by the second.
        threads: torch's threads.
        ways: one row a way.
    """

    model: str
    prompts: int
    flops: int
    flops_per_second: float
    limit_seconds: float
    threads: int
    ways: list[Way]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run_bench(
    setting: Setting,
    backends: Sequence[str] = ("fx",),
    dtypes: Sequence[str] = ("float32",),
    repeat: int = 5,
    say: Say = lambda line: None,
) -> BenchResult:
    """Measures every way, one call of each in turn, and gives medians.

    Args:
        setting: what to measure.
        backends: see `compile`.
        dtypes: see `compile`; each backend is compiled to each.
        repeat: rounds that count; one before them does not.
        say: called with one line of text as each stage begins.

    Raises:
        UnsupportedError: if `repeat` is less than 1, or there is no such backend.
        TypeMismatchError: if nothing is computed in a dtype.
        TapeoutError: see `compile`. What a backend does not support is said and left out.
    """
    if repeat < 1:
        raise UnsupportedError(f"{repeat} rounds measure nothing", hint="use 1 or more, or leave it out")
    check_ways(backends, dtypes)
    calls, made = _ways(setting, backends, dtypes, say)
    say("measuring")
    products = _products(setting.tokens.device)
    seconds = measure({**products, **calls}, repeat)
    rate = _MATMULS * 2 * MATMUL[0] * MATMUL[1] * MATMUL[2] / min(seconds[name] for name in products)
    say("comparing with float64")
    exact = compile(setting.metric, inputs=["tokens", "labels"], dtype="float64", device=setting.tokens.device)
    flops = exact.cost(len(setting.tokens)).flops
    values = exact(tokens=setting.tokens, labels=setting.labels)
    limit = flops / rate
    ways = [
        Way(name, seconds[name], seconds[name] / limit, float((call().double() - values).abs().max()), made.get(name))
        for name, call in calls.items()
    ]
    return BenchResult(setting.name, len(setting.tokens), flops, rate, limit, torch.get_num_threads(), ways)


def check_ways(backends: Sequence[str], dtypes: Sequence[str]) -> None:
    """Raises what `run_bench` raises for names of backends and dtypes, before a model is loaded."""
    for backend in backends:
        builder(backend)
    for dtype in dtypes:
        if as_dtype(dtype) not in DTYPES:
            raise TypeMismatchError(f"cannot compute in {dtype}", hint="use float32, float64 or bfloat16")


def _products(device: torch.device) -> dict[str, Call]:
    """The product that the limit is measured on, by each of torch's libraries for it: the faster one counts."""
    left, right = torch.randn(MATMUL[:2], device=device), torch.randn(MATMUL[1:], device=device)

    def times(call: Call) -> Call:
        return lambda: [call() for _ in range(_MATMULS)][-1]

    ways: dict[str, Call] = {"left @ right": times(lambda: left @ right)}
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(right.T.contiguous(), MATMUL[0])
        ways["packed"] = times(lambda: torch.ops.mkldnn._linear_pointwise(left, packed, None, "none", [], ""))
    return ways


def _ways(
    setting: Setting, backends: Sequence[str], dtypes: Sequence[str], say: Say
) -> tuple[dict[str, Call], dict[str, float]]:
    """Every way, ready to be called, and the seconds that making it took."""
    calls: dict[str, Call] = {
        "Hugging Face, all logits": lambda: hugging_face_logit_diff(setting),
        "Hugging Face, last logits": lambda: hugging_face_logit_diff(setting, logits_to_keep=1),
    }
    made: dict[str, float] = {}

    def add(name: str, make: Callable[[], Call]) -> None:
        say(f"compiling: {name}")
        start = time.perf_counter()
        try:
            call = make()
            call()  # the first call may compile
        except UnsupportedError as error:
            say(f"left out: {name}: {error.message}; {error.hint}")
            return
        made[name] = time.perf_counter() - start
        calls[name] = call

    device = setting.tokens.device
    batch = None if device.type == "cpu" else len(setting.tokens)  # a CUDA graph of that size

    def of_inputs(backend: str, dtype: str) -> Call:
        compiled = compile(setting.metric, backend, list(setting.inputs), dtype, device, batch=batch)
        return partial(compiled, **setting.inputs)

    def bound(backend: str, dtype: str) -> Call:
        circuit = bind_dataset(setting.metric, setting.tokens.cpu(), setting.labels.cpu())
        return compile(circuit, backend, dtype=dtype, device=device)

    if "onnx" in backends and device.type == "cpu":
        add("torch.onnx.export, last logits", partial(exported_logit_diff, setting))
    for backend in backends:
        for dtype in dtypes:
            add(f"{backend} {dtype}", partial(of_inputs, backend, dtype))
    for backend in backends:
        add(f"{backend} {dtypes[0]}, prompts bound", partial(bound, backend, dtypes[0]))
    return calls, made


def format_result(result: BenchResult) -> str:
    """The table as text."""
    lines = [
        f"{result.model}, {result.prompts} prompts: {result.flops / 1e9:.0f} GFLOP at "
        f"{result.flops_per_second / 1e9:.0f} "
        f"GFLOP/s: limit {result.limit_seconds:.3f} s, {result.threads} threads",
        f"{'':32} {'x limit':>8} {'seconds':>8} {'largest error':>14} {'compiled in':>12}",
    ]
    for way in result.ways:
        made = "" if way.compile_seconds is None else f"{way.compile_seconds:.1f} s"
        lines.append(f"{way.name:32} {way.multiple:8.2f} {way.seconds:8.3f} {way.max_abs_error:14.1e} {made:>12}")
    return "\n".join(lines)
