"""The IOI logit difference of 100 prompts: every way of computing it, as a multiple of the limit.

    python benchmarks/ioi_logit_diff.py [--model gpt2-small] [--backend fx] [--device cuda] [--repeat 7] [--json]

With --backend onnx and onnxscript installed, also what torch.onnx.export makes of Hugging Face's model.
gpt2-small has random weights and prompts like one template's; see tapeout.tasks.ioi.bench for the limit.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from typing import Any

import torch

from tapeout.compiler.allocator import keep_freed_memory
from tapeout.models import circuit_of, split_circuit
from tapeout.models.checkpoint import load_checkpoint
from tapeout.tasks.ioi import IOIDataset
from tapeout.tasks.ioi.bench import format_result, run_bench
from tapeout.tasks.ioi.circuit import logit_diff_circuit
from tapeout.tasks.ioi.setting import Setting

LENGTH = 16
PROMPTS = 100
DIFFERING = (3, 5, 9, 13)
"""Where prompts of one template differ: two names, a place, an object; the second name comes again at 11."""


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
    """Token rows as the prompts of one template, and the tokens compared."""
    generator = torch.Generator().manual_seed(seed)
    row = torch.randint(0, vocabulary, (LENGTH,), generator=generator)
    tokens = row.repeat(PROMPTS, 1)
    for position in DIFFERING:
        choices = torch.randint(0, vocabulary, (60,), generator=generator)
        tokens[:, position] = choices[torch.randint(0, 60, (PROMPTS,), generator=generator)]
    tokens[:, 11] = tokens[:, 5]
    return tokens, torch.stack([tokens[:, 3], tokens[:, 5]], dim=1)


def setting(name: str) -> Setting:
    """The model of that name with its prompts."""
    if name == "gpt2-small":
        model = random_gpt2_small()
        tokens, labels = template_prompts(model.config.vocab_size)
    else:
        checkpoint = load_checkpoint(name)
        model = checkpoint.model
        data = IOIDataset("mixed", PROMPTS, tokenizer=checkpoint.tokenizer, nb_templates=1)
        tokens, labels = data.prompts_toks, data.labels
    circuits, info = circuit_of(model)
    split, _ = split_circuit(circuits, info, tokens.shape[1])
    return Setting(name, model, logit_diff_circuit(split), tokens, labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", action="append", help="gpt2-small (random weights) or what load_circuit takes; both by default"
    )
    parser.add_argument(
        "--backend", action="append", help="fx, inductor, onnx or torchscript; fx and inductor by default"
    )
    parser.add_argument("--dtype", action="append", help="float32 and bfloat16 by default")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--repeat", type=int, default=7, help="rounds; medians are reported")
    parser.add_argument("--json", action="store_true", help="print one JSON object a model")
    options = parser.parse_args()
    keep_freed_memory()  # for every way alike
    for name in options.model or ["gpt2-small", "smollm2-135m"]:
        result = run_bench(
            setting(name).to(options.device),
            options.backend or ["fx", "inductor"],
            options.dtype or ["float32", "bfloat16"],
            options.repeat,
            lambda line: print(line, file=sys.stderr),
        )
        print(json.dumps(result.to_json()) if options.json else format_result(result), flush=True)


if __name__ == "__main__":
    main()
