"""Proves and measures on a GPU what only one can tell: `make gpu`, in at most eight minutes.

    python benchmarks/gpu.py [--device cuda] [--quick] [--only PART] [--out build/gpu]

Parts prepare side by side, each in a process of its own: they load models and compile. Then they measure, one after
the other. A part that fails or takes too long costs the rest nothing: what it said last is in the results. A table is
printed last, and everything is written to OUT/gpu-results.json.

- tests: tests/gpu.
- gpt2 and llama (a Llama of 1.5 billion parameters), both with random weights, in float32, TF32 and bfloat16: the
  logit difference of 1, 16, 100 and 1,000 prompts of 16 tokens, and of 8 x 1,024; beside Hugging Face's model with
  last logits (eager, and torch.compile with CUDA graphs) and a function pruned and captured by hand.
- sweeps: direct effects, heads, edges at the last position; beside hooks on Hugging Face's model.

`--quick` takes small models; with `--device cpu` it is the rehearsal of everything but the GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fcntl import LOCK_EX, flock
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent
PREPARE, GRACE, MEASURE, ALL = 150, 60, 60, 470
"""Seconds: in which parts begin what they prepare, more in which they finish it, that one may measure, for all."""

_BUDGET, _ROUNDS = 1.0, (3, 30)
"""Seconds of rounds that a table may take, and how many rounds at least and at most."""

Values = Mapping[str, Any]
Call = Callable[[], Any]


@dataclass(frozen=True)
class Options:
    """What is asked for: the device, small models or the real ones, where results go, until when to prepare."""

    device: str
    quick: bool
    out: Path
    until: float


# -- parts: each prepares, and gives what measures


def logit_difference(kind: str, dtype: str, length: int, batches: Sequence[int], options: Options) -> Call:
    """The logit difference of a model in every way, for some batch sizes."""
    import torch
    from by_hand import by_hand

    from tapeout.backends.common.cuda_graphs import CudaGraphs
    from tapeout.compiler import compile
    from tapeout.models import circuit_of
    from tapeout.tasks.ioi.circuit import bind_dataset

    device, is_gpu = torch.device(options.device), options.device != "cpu"
    tf32, narrow = dtype == "tf32", torch.bfloat16 if dtype == "bfloat16" else torch.float32
    model = random_model(kind, options)
    metric = _metric(*circuit_of(model), length)
    name = "bfloat16" if dtype == "bfloat16" else "float32"
    data = {batch: _prompts(model.config.vocab_size, batch, length, device) for batch in batches}
    compiled = partial(compile, metric, inputs=["tokens", "labels"], device=device)
    notes: list[str] = []
    main = 100 if 100 in data else batches[0]

    def attempt(what: str, make: Call) -> Any:
        """What `make` makes; nothing, with a note, where it fails or time is up."""
        _say(f"{time.time() - options.until:.0f} s: {what}")
        if time.time() > options.until:
            notes.append(f"{what}: left out for want of time")
            return None
        try:
            return make()
        except Exception as error:  # a way that fails costs no other way
            notes.append(f"{what}: {type(error).__name__}: {str(error).strip().splitlines()[0]}")
            _say(traceback.format_exc())
            return None

    def exact() -> dict[int, Any]:
        with _one_at_a_time(options):  # twice the memory
            few = compiled(dtype="float64")
            out = {batch: few(**values).double() for batch, values in data.items() if batch <= 100}
            del few
            if is_gpu:
                torch.cuda.empty_cache()
            return out

    expected = attempt("float64", exact) or {}
    fx = attempt("fx", lambda: compiled(dtype=name, tf32=tf32))
    inductor = attempt("inductor", lambda: compiled("inductor", dtype=name, tf32=tf32, batch=None))
    bound = attempt(
        "bound", lambda: compile(bind_dataset(metric, *_on_cpu(data[main])), dtype=name, tf32=tf32, device=device)
    )
    memory = {batch: _memory(fx, values, batch) for batch, values in data.items()} if fx and is_gpu else {}
    hugging = model.to(device=device, dtype=narrow)
    hand = by_hand(hugging)

    def hf(tokens: Any, labels: Any) -> Any:
        last = hugging(tokens, use_cache=False, logits_to_keep=1).logits[:, -1].float()
        io, s = last.gather(1, labels).unbind(1)
        return io - s

    def captured(run: Any, values: Values) -> Call | None:
        if not is_gpu:
            return None
        graphs = CudaGraphs(_Positional(run), [len(values["tokens"])], device)
        return partial(graphs, *values.values())

    tables: dict[int, dict[str, Call | None]] = {}
    for batch, values in data.items():
        ways: dict[str, Call | None] = {
            "Hugging Face": partial(hf, **values),
            "by hand": partial(hand, **values),
            "by hand, captured": captured(hand, values),
            "fx": fx and partial(fx, **values),
            "fx, captured": fx and captured(fx.executable, values),
            "inductor": inductor and partial(inductor, **values),
            "inductor, captured": inductor and captured(inductor.executable, values),
        }
        if batch == main:
            faster = torch.compile(hf, mode="reduce-overhead", dynamic=False)
            ways["Hugging Face, torch.compile"] = partial(_cloned, faster, values)
            ways["fx, prompts bound"] = bound
        with _precision(tf32):
            tables[batch] = {
                way: call
                for way, call in ways.items()
                if call is not None and attempt(f"{way} {batch}", partial(_twice, call)) is not None
            }

    def measured() -> dict[str, Any]:
        facts = dict[str, Any](notes=notes, batches={})
        cost = compiled(dtype=name)
        weights = cost.cost(1).weight_bytes // (2 if dtype == "bfloat16" else 1)
        speed = _bandwidth(device)
        for batch, calls in tables.items():
            with _precision(tf32):
                seconds = _interleaved(calls)
                width = model.config.hidden_size
                rate = _matmul_rate(batch * length, width, device, narrow)
            flops = cost.cost(batch).flops
            limit = max(flops / rate, weights / speed)
            errors = {way: _error(call, expected.get(batch), tf32) for way, call in calls.items()}
            facts["batches"][batch] = {
                "flops": flops,
                "flops a second": rate,
                "bytes a second": speed,
                "limit": limit,
                "seconds": seconds,
                "errors": errors,
                "memory": memory.get(batch),
            }
        return facts

    return measured


def sweeps(options: Options) -> Call:
    """Sweeps of patches beside hooks and beside a forward pass a variant."""
    import patching

    data = patching.setting(patching.GPT2_SMALL, options.quick, options.device)
    arguments = argparse.Namespace(no_rust=True, sample=options.quick)

    def measured() -> dict[str, Any]:
        out = {part: patching.RUNS[part](data, arguments) for part in ("direct", "activation", "edges")}
        few = data.first(patching.PROMPTS)
        forward = median(patching.clocked(lambda: data.model(few.baseline["tokens"]))[0] for _ in range(5))
        out["direct"]["a forward of Hugging Face's model a variant"] = (
            forward * out["direct"]["variants"] / out["direct"]["seconds"]
        )
        return out

    return measured


def gpu_tests(options: Options) -> Call:
    """tests/gpu, run while the others prepare."""
    report = options.out / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-c", str(HERE.parent / "setup.cfg"), "--rootdir", str(HERE.parent)]
    command += [str(HERE.parent / "tests" / "gpu"), "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    if options.device != "cpu" and _version("pytest-xdist"):
        command += ["-n", "4"]
    done = subprocess.run(command, check=False)

    def counted() -> dict[str, Any]:
        cases = list(ElementTree.parse(report).iter("testcase"))
        bad = {
            case.get("name", ""): _first_lines(found[0].get("message", ""))
            for case in cases
            if (found := [*case.iter("failure"), *case.iter("error")])
        }
        skipped = {
            case.get("name", ""): _first_lines(each.get("message", ""))
            for case in cases
            for each in case.iter("skipped")
        }
        passed = len(cases) - len(bad) - len(skipped)
        return {"exit": done.returncode, "passed": passed, "failed": bad, "skipped": skipped}

    return counted


def parts(options: Options) -> dict[str, Callable[[Options], Call]]:
    """Every part by name, in the order in which they measure."""
    short: Sequence[int] = (1, 16, 100, 1000) if not options.quick else (1, 16)
    long = 1024 if not options.quick else 64
    out: dict[str, Callable[[Options], Call]] = {"tests": gpu_tests}
    for kind in ("gpt2", "llama"):
        for dtype in ("float32", "tf32", "bfloat16"):
            is_slow = kind == "llama" and dtype == "float32" and not options.quick
            out[f"{kind} {dtype}"] = partial(logit_difference, kind, dtype, 16, short[:-1] if is_slow else short)
            if dtype != "tf32" and not is_slow:  # a call takes a second and more
                out[f"{kind} {dtype} {long}"] = partial(logit_difference, kind, dtype, long, (8,))
    return out | {"sweeps": sweeps}


# -- models and data


def random_model(kind: str, options: Options) -> Any:
    """GPT-2 small or a Llama of 1.5 billion parameters with random weights, or small ones; float32, on the CPU."""
    import torch
    from ioi_logit_diff import random_gpt2_small
    from patching import small_gpt2
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if kind == "gpt2":
        return small_gpt2() if options.quick else random_gpt2_small()
    sizes = {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 32,
             "num_key_value_heads": 8, "vocab_size": 32768}  # fmt: skip
    if options.quick:
        sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
                 "num_key_value_heads": 2, "vocab_size": 500}  # fmt: skip
    config = LlamaConfig(**sizes, max_position_embeddings=2048, tie_word_embeddings=False)
    with torch.device(options.device):  # normal numbers are slow to make on a CPU
        model = LlamaForCausalLM(config).eval()
    return model.to("cpu")


def _metric(circuits: Any, info: Any, length: int) -> Any:
    """The logit difference: split by head and position, but for many positions, of which the whole model is taken."""
    import torch

    from tapeout.ir import GeneralFunction, Symbol
    from tapeout.models import split_circuit
    from tapeout.tasks.ioi.circuit import logit_diff_circuit

    if length <= 64:
        return logit_diff_circuit(split_circuit(circuits, info, length)[0])
    tokens = Symbol.new_with_none_uuid((length,), "tokens", torch.int64)
    embeds = GeneralFunction.gen_index(circuits["t.w.tok_embeds"], tokens, 0, name="tok_embeds")
    return logit_diff_circuit(info.bind_to_input(circuits["t.bind_w"], embeds, circuits.get("t.w.pos_embeds")))


def _prompts(vocabulary: int, count: int, length: int, device: Any) -> dict[str, Any]:
    import torch
    from ioi_logit_diff import DIFFERING

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocabulary, (length,), generator=generator).repeat(count, 1)
    for position in DIFFERING:
        tokens[:, position] = torch.randint(vocabulary, (count,), generator=generator)
    tokens[:, 11] = tokens[:, 5]
    return {"tokens": tokens.to(device), "labels": tokens[:, [3, 5]].to(device)}


def _on_cpu(values: Values) -> list[Any]:
    return [values[name].cpu() for name in ("tokens", "labels")]


@contextmanager
def _one_at_a_time(options: Options) -> Iterator[None]:
    """Inside, no other part is inside."""
    with (options.out / "lock").open("w", encoding="ascii") as file:
        flock(file, LOCK_EX)
        yield


# -- measuring


class _Positional:
    """A function without gradients, as something that CUDA graphs take."""

    def __init__(self, run: Any) -> None:
        self.run = run

    def __call__(self, *values: Any) -> Any:
        import torch

        with torch.no_grad():
            return self.run(*values)


class _precision:
    """Products in TF32 or not, for what is not compiled by tapeout."""

    def __init__(self, tf32: bool) -> None:
        self.wanted = "high" if tf32 else "highest"

    def __enter__(self) -> None:
        import torch

        self.before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.wanted)

    def __exit__(self, *_: object) -> None:
        import torch

        torch.set_float32_matmul_precision(self.before)


def _cloned(run: Any, values: Values) -> Any:
    """A result that the next call does not overwrite, as all the others are."""
    return run(**values).clone()


def _twice(call: Call) -> bool:
    import torch

    for _ in range(3):
        with torch.no_grad():
            call()
    return True


def _interleaved(calls: Mapping[str, Call]) -> dict[str, float]:
    """Median seconds of each, one call of each in turn, in as many rounds as the budget allows."""
    import torch

    from tapeout.compiler.measure import measure

    with torch.no_grad():
        one = sum(measure(calls, 1).values())
        return measure(calls, max(_ROUNDS[0], min(_ROUNDS[1], int(_BUDGET / max(one, 1e-6)))))


def _error(call: Call, expected: Any, tf32: bool) -> float | None:
    import torch

    if expected is None:
        return None
    with torch.no_grad(), _precision(tf32):
        return float((call().double() - expected).abs().max())


def _memory(fx: Any, values: Values, batch: int) -> dict[str, int]:
    """The peak of what a call allocates on the GPU, and what `cost` says."""
    import torch

    fx(**values)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fx(**values)
    torch.cuda.synchronize()
    return {
        "measured": torch.cuda.max_memory_allocated() - before,
        "estimated": fx.cost(batch).peak_activation_bytes,
    }


def _matmul_rate(rows: int, width: int, device: Any, dtype: Any) -> float:
    """Operations a second of products of the model's size."""
    import torch

    left = torch.randn(rows, width, device=device, dtype=dtype)
    right = torch.randn(width, 4 * width, device=device, dtype=dtype)
    count = 10
    seconds = _interleaved({"": lambda: [left @ right for _ in range(count)][-1]})[""]
    return count * 2 * rows * width * 4 * width / seconds


def _bandwidth(device: Any) -> float:
    """Bytes a second of reading and writing the device's memory."""
    import torch

    source = torch.empty((1 << 30 if device.type == "cuda" else 1 << 26) // 4, device=device)
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / _interleaved({"": lambda: target.copy_(source)})[""]


# -- the runner


def run(options: Options, only: Sequence[str]) -> dict[str, Any]:
    """All parts: prepared together, measured one after the other."""
    options.out.mkdir(parents=True, exist_ok=True)
    names = [name for name in parts(options) if not only or name in only]
    started = time.monotonic()
    workers = {name: _Worker(name, options) for name in names}
    results = {}
    try:
        while time.time() < options.until + GRACE and any(each.is_preparing for each in workers.values()):
            time.sleep(0.2)
        _say(f"prepared in {time.monotonic() - started:.0f} s")
        for name, worker in workers.items():
            results[name] = worker.result(max(1.0, min(MEASURE, started + ALL - time.monotonic())))
            _say(f"{name}: {results[name].get('lost', 'done')}, {time.monotonic() - started:.0f} s")
            _write(options, results, started)
    finally:
        for worker in workers.values():
            worker.process.kill()
    return _write(options, results, started)


def _write(options: Options, results: Mapping[str, Any], started: float) -> dict[str, Any]:
    out = {**about(options), "seconds": time.monotonic() - started, "parts": results}
    temporary = options.out / "gpu-results.json.new"
    temporary.write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")
    temporary.replace(options.out / "gpu-results.json")
    return out


class _Worker:
    """A part in a process of its own."""

    def __init__(self, name: str, options: Options) -> None:
        stem = name.replace(" ", "-")
        self.ready, self.done = options.out / f"{stem}.ready", options.out / f"{stem}.json"
        self.log = options.out / f"{stem}.log"
        for old in (self.ready, self.done):
            old.unlink(missing_ok=True)
        command = [sys.executable, __file__, "--part", name, "--device", options.device, "--out", str(options.out)]
        command += ["--until", str(options.until)]
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                command + ["--quick"] * options.quick,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "4"},
            )

    @property
    def is_preparing(self) -> bool:
        return self.process.poll() is None and not self.ready.exists()

    def result(self, limit: float) -> dict[str, Any]:
        """What it measures now; what it said last if it fails."""
        if not self.ready.exists():
            return self._failure("was not ready in time" if self.process.poll() is None else "failed to prepare")
        try:
            self.process.communicate(b"go\n", limit)
        except (subprocess.TimeoutExpired, OSError):
            self.process.kill()
            return self._failure(f"measured for more than {limit:.0f} s")
        if self.done.exists():
            return dict(json.loads(self.done.read_text(encoding="utf-8")))
        return self._failure("failed to measure")

    def _failure(self, what: str) -> dict[str, Any]:
        self.process.kill()
        return {"lost": what, "said": self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]}


def work(name: str, options: Options) -> None:
    """In a worker: prepares, waits for its turn, measures."""
    stem = options.out / name.replace(" ", "-")
    measured = parts(options)[name](options)
    stem.with_name(stem.name + ".ready").touch()
    sys.stdin.readline()
    stem.with_name(stem.name + ".json").write_text(json.dumps(measured()), encoding="utf-8")


def about(options: Options) -> dict[str, Any]:
    """The machine and the versions."""
    import torch

    from tapeout.ir.files.own_version import own_version

    is_gpu = options.device != "cpu"
    names = ("transformers", "triton", "onnxruntime", "onnxruntime-gpu", "numpy", "xarray")
    return {
        "device": torch.cuda.get_device_name() if is_gpu else platform.processor() or platform.machine(),
        "memory": torch.cuda.get_device_properties(0).total_memory if is_gpu else None,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "quick": options.quick,
        "versions": {"tapeout": own_version(), "torch": torch.__version__} | {name: _version(name) for name in names},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _first_lines(text: str) -> list[str]:
    return text.strip().splitlines()[:3]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def table(result: dict[str, Any]) -> Iterator[str]:
    """The results as lines of text."""
    yield f"{result['device']}, torch {result['versions']['torch']}, {result['seconds']:.0f} s"
    for name, part in result["parts"].items():
        if "lost" in part:
            yield from [f"\n{name}: {part['lost']}", *(f"    {line[:150]}" for line in part["said"])]
        elif "batches" in part:
            yield from _table_of_ways(name, part)
        elif "passed" in part:
            yield f"\n{name}: {part['passed']} passed, {len(part['failed'])} failed, {len(part['skipped'])} skipped"
            yield from (f"    {test}: {' '.join(lines)[:200]}" for test, lines in part["failed"].items())
        else:
            yield f"\n{name}"
            yield from _flat(part)


def _table_of_ways(name: str, part: Mapping[str, Any]) -> Iterator[str]:
    for batch, facts in part["batches"].items():
        limit, rate, memory = facts["limit"], facts["flops a second"], facts["memory"]
        yield f"\n{name}, {batch} prompts: limit {limit * 1e3:.3f} ms at {rate / 1e12:.1f} TFLOP/s"
        if memory:
            yield f"    memory {memory['measured'] / 1e6:.1f} MB, estimated {memory['estimated'] / 1e6:.1f}"
        bar = facts["seconds"].get("by hand, captured") or facts["seconds"].get("by hand") or math.nan
        for way, seconds in facts["seconds"].items():
            error = facts["errors"][way]
            wrong = "" if error is None else f"{error:9.1e}"
            multiples = f"{seconds / limit:7.2f} x limit {seconds / bar:6.2f} x by hand"
            yield f"    {way:28} {seconds * 1e3:9.3f} ms {multiples} {wrong}"
    yield from (f"    ! {note[:200]}" for note in part["notes"])


def _flat(facts: Mapping[str, Any], indent: str = "    ") -> Iterator[str]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield f"{indent}{name}"
            yield from _flat(value, indent + "  ")
        else:
            yield f"{indent}{name}: {value:.4g}" if isinstance(value, float) else f"{indent}{name}: {value}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to rehearse")
    parser.add_argument("--quick", action="store_true", help="small models")
    parser.add_argument("--only", action="append", default=[], help="one part; may be given several times")
    parser.add_argument("--out", type=Path, default=HERE.parent / "build" / "gpu", help="a folder for logs and results")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, default=time.time() + PREPARE, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    options = Options(arguments.device, arguments.quick, arguments.out.resolve(), arguments.until)
    if arguments.part:
        work(arguments.part, options)
        return 0
    unknown = set(arguments.only) - set(parts(options))
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(parts(options))}")
    result = run(options, arguments.only)
    print("\n".join(table(result)))
    failed = [name for name, part in result["parts"].items() if part.get("failed") or "lost" in part]
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
