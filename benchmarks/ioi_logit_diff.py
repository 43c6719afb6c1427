"""The IOI logit difference of a batch of prompts: every way of computing it, as a multiple of the limit.

The limit is the FLOPs that the answer needs (the last block computes only the last position, the
unembedding only two tokens), divided by the machine's matmul rate on (1600 x 768) @ (768 x 3072),
measured in the same run. Everything is measured interleaved; medians are reported.

    python benchmarks/ioi_logit_diff.py [--model gpt2-small | smollm2-135m] [--repeat 7] [--json]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tapeout.compiler import Compiled, compile
from tapeout.ir import Circuit
from tapeout.models import circuit_of, split_circuit
from tapeout.models.checkpoint import load_checkpoint
from tapeout.tasks.ioi.circuit import bind_dataset, logit_diff_circuit

LENGTH = 16
PROMPTS = 100


@dataclass(frozen=True)
class Setting:
    """What is measured: the model, its circuit, and the prompts."""

    name: str
    model: Any
    metric: Circuit
    tokens: torch.Tensor
    labels: torch.Tensor


def random_gpt2_small(seed: int = 0) -> Any:
    """GPT-2 small with random weights that hide nothing: random biases and norms, attention that chooses."""
    from transformers import GPT2Config, GPT2LMHeadModel

    generator = torch.Generator().manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(0.3 * noise + (1.0 if "ln_" in name and name.endswith("weight") else 0.0))
            elif "wte" in name or "wpe" in name:
                parameter.copy_(3 * noise / math.sqrt(parameter.shape[1]))
            else:
                parameter.copy_((1.6 if "c_attn" in name else 1.0) * noise / math.sqrt(parameter.shape[0]))
    return model


def template_prompts(vocabulary: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Token rows as one template gives them: positions 1, 3, 8, 10 and 13 differ between prompts, others do not."""
    generator = torch.Generator().manual_seed(seed)
    row = torch.randint(0, vocabulary, (LENGTH,), generator=generator)
    tokens = row.repeat(PROMPTS, 1)
    for position in (3, 5, 9, 13):
        tokens[:, position] = torch.randint(0, vocabulary, (PROMPTS,), generator=generator)
    tokens[:, 11] = tokens[:, 5]
    return tokens, torch.stack([tokens[:, 3], tokens[:, 5]], dim=1)


def setting(name: str) -> Setting:
    if name == "gpt2-small":
        model = random_gpt2_small()
        tokens, labels = template_prompts(model.config.vocab_size)
    else:
        from tapeout.tasks.ioi import IOIDataset

        checkpoint = load_checkpoint(name)
        model = checkpoint.model
        data = IOIDataset("mixed", PROMPTS, tokenizer=checkpoint.tokenizer)
        tokens, labels = data.prompts_toks, torch.stack([data.io_tokenIDs, data.s_tokenIDs], dim=1)
    circuits, info = circuit_of(model)
    split, _ = split_circuit(circuits, info, tokens.shape[1])
    return Setting(name, model, logit_diff_circuit(split), tokens, labels)


def difference(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    io, s = logits.gather(1, labels).unbind(1)
    return io - s


def ways(chosen: Setting, backends: list[str]) -> dict[str, Callable[[], torch.Tensor]]:
    """Every way of computing the answer, ready to be called."""
    model, tokens, labels = chosen.model, chosen.tokens, chosen.labels

    def hugging_face(**options: Any) -> torch.Tensor:
        with torch.inference_mode():
            return difference(model(tokens, use_cache=False, **options).logits[:, -1], labels)

    out: dict[str, Callable[[], torch.Tensor]] = {
        "Hugging Face, all logits": hugging_face,
        "Hugging Face, last logits": lambda: hugging_face(logits_to_keep=1),
    }
    for backend in backends:
        for dtype in ("float32", "bfloat16"):
            compiled = timed(f"compile {backend} {dtype}", lambda b=backend, d=dtype: compile(  # type: ignore[misc]
                chosen.metric, backend=b, inputs=["tokens", "labels"], dtype=d))  # fmt: skip
            out[f"{backend} {dtype}"] = lambda c=compiled: c(tokens=tokens, labels=labels)  # type: ignore[misc]
    if "fx" in backends:
        bound = timed(
            "compile fx, prompts bound", lambda: compile(bind_dataset(chosen.metric, tokens, labels))
        )
        out["fx float32, prompts bound"] = bound
    return out


def timed(what: str, make: Callable[[], Compiled]) -> Compiled:
    start = time.perf_counter()
    made = make()
    print(f"{what}: {time.perf_counter() - start:.2f} s", file=sys.stderr)
    return made


def measure(calls: dict[str, Callable[[], Any]], repeat: int) -> dict[str, float]:
    """The median seconds of each, one of each in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeat + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def run(name: str, backends: list[str], repeat: int) -> dict[str, Any]:
    chosen = setting(name)
    calls = ways(chosen, backends)
    left, right = torch.randn(1600, 768), torch.randn(768, 3072)
    rounds = 10

    def matmul() -> None:
        for _ in range(rounds):
            left @ right

    compiled = compile(chosen.metric, inputs=["tokens", "labels"])
    flops = compiled.cost(PROMPTS).flops
    seconds = measure({"matmul": matmul, **calls}, repeat)
    rate = rounds * 2 * 1600 * 768 * 3072 / seconds.pop("matmul")
    limit = flops / rate
    exact = compile(chosen.metric, inputs=["tokens", "labels"], dtype="float64")(
        tokens=chosen.tokens, labels=chosen.labels
    )
    errors = {way: float((call().double() - exact).abs().max()) for way, call in calls.items()}
    return {
        "model": name,
        "gflop": flops / 1e9,
        "matmul_gflop_per_second": rate / 1e9,
        "limit_seconds": limit,
        "multiples": {way: value / limit for way, value in seconds.items()},
        "max_abs_error": errors,
        "threads": torch.get_num_threads(),
    }


def show(result: dict[str, Any]) -> None:
    print(
        f"{result['model']}: {result['gflop']:.0f} GFLOP at {result['matmul_gflop_per_second']:.0f} GFLOP/s: "
        f"limit {result['limit_seconds']:.3f} s, {result['threads']} threads"
    )
    for way, multiple in result["multiples"].items():
        print(f"  {way:28} {multiple:6.2f} x the limit   largest error {result['max_abs_error'][way]:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", action="append", help="gpt2-small (random weights) or smollm2-135m; both by default"
    )
    parser.add_argument(
        "--backend", action="append", help="fx, inductor or torchscript; fx and inductor by default"
    )
    parser.add_argument("--repeat", type=int, default=7, help="rounds; medians are reported")
    parser.add_argument("--json", action="store_true", help="print one JSON object a model")
    options = parser.parse_args()
    for name in options.model or ["gpt2-small", "smollm2-135m"]:
        result = run(name, options.backend or ["fx", "inductor"], options.repeat)
        print(json.dumps(result)) if options.json else show(result)


if __name__ == "__main__":
    main()
