"""Sweeps of patches over GPT-2 small (random weights) or another model, beside what else computes the same.

    python benchmarks/patching.py [--model smollm2-135m] [--device cuda] [--quick] [--json]
        [--only direct|activation|positions|edges]

- direct: each head's direct effect on the logits at the last position; beside rust_circuit's path patches
  (`--no-rust` leaves them out) and two plain forward passes.
- activation: each head's output replaced at all positions; beside TransformerLens where it is installed
  (`pip install tapeout[bench]`) and the model is a GPT-2, else a loop of hooks on Hugging Face's model.
- positions: the same at one position at a time. The peer is measured on one layer's heads.
- edges: the queries of all later heads, of every head; beside one compiled forward pass an edge. A sample of the
  senders is run, and the rest is in proportion to the operations that `estimate` counts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from ioi_logit_diff import random_gpt2_small, template_prompts

from tapeout.compiler import compile
from tapeout.compiler.measure import finished
from tapeout.ir import Circuit
from tapeout.models import circuit_of, split_circuit
from tapeout.models.checkpoint import load_checkpoint
from tapeout.tasks.ioi import IOIDataset
from tapeout.tasks.ioi.circuit import logit_diff_circuit
from tapeout.tasks.patching import Sweep, Variants, direct, edges, heads, heads_by_position

GPT2_SMALL = "gpt2-small"
PROMPTS = 8
PARTS = ("direct", "activation", "positions", "edges")


@dataclass(frozen=True)
class Setting:
    """What is patched.

    Attributes:
        model: Hugging Face's model.
        metric: its logit difference of one prompt.
        baseline: the prompts, `tokens` and `labels`.
        patch: the same prompts with other names.
    """

    model: Any
    device: str
    metric: Circuit
    baseline: dict[str, torch.Tensor]
    patch: dict[str, torch.Tensor]
    split_seconds: float

    def first(self, count: int) -> Setting:
        baseline = {name: value[:count] for name, value in self.baseline.items()}
        return Setting(
            self.model, self.device, self.metric, baseline, {"tokens": self.patch["tokens"][:count]}, self.split_seconds
        )

    @property
    def layers(self) -> int:
        return int(self.model.config.num_hidden_layers)

    @property
    def heads(self) -> int:
        return int(self.model.config.num_attention_heads)


def setting(name: str, quick: bool, device: str = "cpu") -> Setting:
    """The model of that name, with prompts and the same prompts with other names."""
    if name == GPT2_SMALL:
        model = random_gpt2_small() if not quick else small_gpt2()
        tokens, labels = template_prompts(model.config.vocab_size)
        others, _ = template_prompts(model.config.vocab_size, seed=1)
        patch = tokens.clone()
        patch[:, [3, 5]] = others[:, [3, 5]]
        patch[:, 11] = patch[:, 5]
    else:
        checkpoint = load_checkpoint(name)
        model = checkpoint.model
        data = IOIDataset("mixed", 50, tokenizer=checkpoint.tokenizer)
        tokens, labels = data.prompts_toks, data.labels
        patch = data.gen_flipped_prompts("IO").gen_flipped_prompts("S").prompts_toks
    start = clock()
    circuits, info = circuit_of(model)
    metric = logit_diff_circuit(split_circuit(circuits, info, tokens.shape[1])[0])
    taken = clock() - start
    baseline = {"tokens": tokens.to(device), "labels": labels.to(device)}
    return Setting(model.to(device), device, metric, baseline, {"tokens": patch.to(device)}, taken)


def small_gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=500, n_embd=96, n_layer=4, n_head=4)).eval()


clock = time.perf_counter


def clocked(call: Callable[[], Any], repeat: int = 1) -> tuple[float, Any]:
    """The least time of some calls, and what the last gave."""
    best, value = float("inf"), None
    for _ in range(repeat):
        finished()
        start = clock()
        value = call()
        finished()
        best = min(best, clock() - start)
    return best, value


def forward(data: Setting) -> float:
    """Seconds of one compiled forward pass."""
    compiled = compile(data.metric, inputs=["tokens", "labels"], device=data.device)
    compiled(**data.baseline)
    return clocked(lambda: compiled(**data.baseline), 5)[0]


def swept(data: Setting, variants: Variants, repeat: int = 1) -> tuple[dict[str, Any], Any]:
    """A sweep's times: planning and compiling with the first run, and the best of `repeat` runs after that.

    With `repeat` 0 the first run counts, in which parts are lowered as they are met.
    """
    planned, sweep = clocked(lambda: Sweep(data.metric, variants, data.baseline, data.patch, device=data.device))
    ran, first = clocked(sweep.run)
    seconds = clocked(sweep.run, repeat)[0] if repeat else ran
    estimate = sweep.estimate()
    facts = {
        "variants": len(variants),
        "seconds": seconds,
        "with splitting and compiling": data.split_seconds + planned + ran,
        "flops": estimate.flops,
        "estimated seconds": estimate.seconds,
    }
    return facts, first


def run_direct(data: Setting, options: argparse.Namespace) -> dict[str, Any]:
    few = data.first(PROMPTS)
    out, result = swept(few, direct(data.metric), 5)
    if not options.no_rust and find_spec("rust_circuit") is not None:
        built, evaluated, values = rust_direct(few)
        out |= {"rust_circuit builds": built, "rust_circuit evaluates": evaluated}
        out["times as fast"] = evaluated / out["seconds"]
        out["times as fast with compiling"] = (built + evaluated) / out["with splitting and compiling"]
        out["largest error"] = float(np.abs(values - result.to_numpy()).max())
    many = data.first(50)
    facts, _ = swept(many, direct(data.metric), 3)
    out["50 prompts, as multiple of two forward passes"] = facts["seconds"] / (2 * forward(many))
    return out


def rust_direct(data: Setting) -> tuple[float, float, Any]:
    """rust_circuit's path patches, built with its matchers and evaluated together: two times, and the values."""
    import rust_circuit as rc

    from tapeout.backends.rust_circuit import to_rust
    from tapeout.tasks.ioi.circuit import bind_rows

    metric = to_rust(bind_rows(data.metric, {name: value.cpu() for name, value in data.baseline.items()}))
    other = rc.Array(data.patch["tokens"].cpu(), name="tokens")
    layers, count, last = data.layers, data.heads, data.baseline["tokens"].shape[1] - 1
    parts = rc.Regex(r"^(a\d+_h\d+_t\d+|m\d+_t\d+)$", escape_dot=False)
    start = clock()
    patched = []
    for layer in range(layers):
        for head in range(count):
            name = f"a{layer}_h{head}_t{last}"
            sender = rc.restrict(rc.Matcher(name), term_early_at=rc.Matcher(parts))
            path = rc.IterativeMatcher("final.input").chain(sender)
            patched.append(metric.update(path, lambda node: node.update("tokens", lambda _: other)))
    built = clock() - start
    evaluated, values = clocked(lambda: rc.optimize_and_evaluate_many(patched))
    return built, evaluated, torch.stack(values).reshape(layers, count, -1).numpy()


def lens(data: Setting) -> Any:
    """TransformerLens's model of the same weights, unprocessed. It wants a tokenizer, which nothing uses."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformer_lens import TransformerBridge
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<s>": 0}, unk_token="<s>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<s>", pad_token="<s>")
    bridge = TransformerBridge.boot_transformers("gpt2", hf_model=deepcopy(data.model), tokenizer=tokenizer)
    bridge.enable_compatibility_mode(disable_warnings=True, no_processing=True)
    return bridge.eval()


def lens_metric(data: Setting) -> Callable[[torch.Tensor], torch.Tensor]:
    labels = data.baseline["labels"]

    def metric(logits: torch.Tensor) -> torch.Tensor:
        io, s = logits[:, -1].gather(1, labels).unbind(1)
        return (io - s).mean()

    return metric


def run_activation(data: Setting, options: argparse.Namespace) -> dict[str, Any]:
    few = data.first(PROMPTS)
    out, result = swept(few, heads(data.metric), 2)
    count = data.layers
    layers = [count // 2] if options.sample else list(range(count))
    seconds, values = peer_of_heads(few, by_position=False, layers=layers)
    seconds *= count / len(layers)
    out |= {"peer": peer_name(data), "peer seconds": seconds, "times as fast": seconds / out["seconds"]}
    out["largest error"] = float(np.abs(values - result.mean().to_numpy()[layers]).max())
    return out


def run_positions(data: Setting, options: argparse.Namespace) -> dict[str, Any]:
    few = data.first(PROMPTS)
    out, result = swept(few, heads_by_position(data.metric), repeat=0)
    layers = [data.layers // 2]
    seconds, values = peer_of_heads(few, by_position=True, layers=layers)
    whole = seconds * data.layers / len(layers)
    out |= {"peer": peer_name(data), "peer seconds, extrapolated": whole, "times as fast": whole / out["seconds"]}
    found = result.mean().to_numpy()[layers]  # [layer, head, position]
    out["largest error"] = float(np.abs(values - found).max())
    return out


def has_lens(data: Setting) -> bool:
    return data.model.config.model_type == "gpt2" and find_spec("transformer_lens") is not None


def peer_name(data: Setting) -> str:
    return "TransformerLens" if has_lens(data) else "hooks on Hugging Face's model"


def peer_of_heads(data: Setting, by_position: bool, layers: list[int]) -> tuple[float, Any]:
    """Head outputs patched one forward pass at a time: seconds, and mean metrics [LAYER, HEAD] or with positions."""
    with torch.inference_mode():
        if has_lens(data):
            return lens_heads(data, by_position, layers)
        return hook_heads(data, by_position, layers)


def lens_heads(data: Setting, by_position: bool, layers: list[int]) -> tuple[float, Any]:
    import pandas as pd
    from transformer_lens import patching

    model, metric = lens(data), lens_metric(data)
    _, cache = model.run_with_cache(data.patch["tokens"])
    tokens = data.baseline["tokens"]
    everything = len(layers) == data.layers
    if not by_position and everything:
        call = patching.get_act_patch_attn_head_out_all_pos
        seconds, values = clocked(lambda: call(model, tokens, cache, metric))
        return seconds, values.cpu().numpy()
    count = data.heads
    places = range(tokens.shape[1]) if by_position else [None]
    rows = [(layer, p, head) for layer in layers for p in places for head in range(count)]
    frame = pd.DataFrame(rows, columns=["layer", "pos", "head"])
    setter = patching.layer_pos_head_vector_patch_setter
    if not by_position:
        frame, setter = frame.drop(columns="pos"), patching.layer_head_vector_patch_setter
    patch = partial(patching.generic_activation_patch, model, tokens, cache, metric, setter, "z", index_df=frame)
    seconds, flat = clocked(patch)
    values = flat.reshape(len(layers), len(places), count).permute(0, 2, 1).cpu().numpy()
    return seconds, values if by_position else values[..., 0]


def hook_heads(data: Setting, by_position: bool, layers: list[int]) -> tuple[float, Any]:
    """The same shape of loop on Hugging Face's model: a hook on the input of each attention's output product."""
    model, metric = data.model, lens_metric(data)
    count, size = data.heads, model.config.hidden_size // data.heads
    if model.config.model_type == "gpt2":
        products = [block.attn.c_proj for block in model.transformer.h]
    else:
        products = [block.self_attn.o_proj for block in model.model.layers]
    held: dict[int, torch.Tensor] = {}
    hooks = [
        product.register_forward_pre_hook(lambda _, args, i=i: held.__setitem__(i, args[0]))  # type: ignore[misc]
        for i, product in enumerate(products)
    ]
    model(data.patch["tokens"])
    for hook in hooks:
        hook.remove()
    places = [slice(p, p + 1) for p in range(data.baseline["tokens"].shape[1])] if by_position else [slice(None)]

    def loop() -> list[float]:
        out = []
        for layer in layers:
            for head in range(count):
                for place in places:
                    at = (slice(None), place, slice(head * size, (head + 1) * size))

                    def change(_: Any, args: Any, at: Any = at, layer: int = layer) -> Any:
                        z = args[0].clone()
                        z[at] = held[layer][at]
                        return (z,)

                    hook = products[layer].register_forward_pre_hook(change)
                    out.append(float(metric(model(data.baseline["tokens"]).logits)))
                    hook.remove()
        return out

    seconds, values = clocked(loop)
    array = np.array(values).reshape(-1, count, len(places))
    return seconds, array if by_position else array[..., 0]


def run_edges(data: Setting, options: argparse.Namespace) -> dict[str, Any]:
    few = data.first(PROMPTS)
    plain = forward(few)
    out: dict[str, Any] = {"one compiled forward": plain}
    layers = data.layers
    # All positions take long: one sender in each third layer, and what it reaches.
    samples = {"at the end": ((-1,), range(1, layers, 4)), "at all positions": (None, range(2, layers - 1, 3))}
    for name, (positions, sending) in samples.items():
        whole = edges(data.metric, positions=positions)
        start = clock()
        total = Sweep(data.metric, whole, few.baseline, few.patch, device=data.device).estimate()
        planning = clock() - start
        senders = [f"a{layer}.h0" for layer in sending]
        facts, _ = swept(few, edges(data.metric, positions=positions, senders=senders))
        seconds = facts["seconds"] * total.flops / facts["flops"]
        out[name] = {
            "edges": len(whole),
            "planned and estimated in": planning,
            "estimated flops": total.flops,
            "estimated seconds": total.seconds,
            "sample": facts,
            "seconds, extrapolated": seconds,
            "times as fast as a forward an edge": len(whole) * plain / seconds,
        }
    return out


RUNS = {"direct": run_direct, "activation": run_activation, "positions": run_positions, "edges": run_edges}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=GPT2_SMALL, help="gpt2-small (random weights) or what load_circuit takes")
    parser.add_argument("--quick", action="store_true", help="a model of 4 layers and 4 heads")
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--no-rust", action="store_true", help="leave rust_circuit out, which takes a minute")
    parser.add_argument("--sample", action="store_true", help="measure the peer on one layer's heads, in proportion")
    parser.add_argument(
        "--processor-time", action="store_true", help="not wall time: on a busy machine, with OMP_NUM_THREADS=1"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.processor_time:
        globals()["clock"] = time.process_time
    data = setting(options.model, options.quick, options.device)
    results = {}
    for name in options.only or PARTS:
        print(f"measuring: {name}", file=sys.stderr)
        results[name] = RUNS[name](data, options)
        if not options.json:
            show(name, results[name])
    if options.json:
        print(json.dumps(results))


def show(title: str, facts: dict[str, Any], indent: str = "") -> None:
    print(f"{indent}{title}")
    for name, value in facts.items():
        if isinstance(value, dict):
            show(name, value, indent + "  ")
        else:
            print(f"{indent}  {name}: {value:.4g}" if isinstance(value, float) else f"{indent}  {name}: {value}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
