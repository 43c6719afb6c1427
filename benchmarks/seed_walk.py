"""The user's worked example, step by step, in either system: tapeout, or rust_circuit where it is installed.

`literal_walk` is the example's own code; only what it imports differs between the two. `rewrite.py` times it,
and the tests compare the two systems after every step.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

FULL_SPLIT = {"split_by_head_config": "full", "use_pull_up_head_split": True, "use_flatten_res": True}
"""The example's options of `configure_transformer`, but for `to`, which it has at its finest."""


@dataclass(frozen=True)
class System:
    """What the example imports.

    Attributes:
        rc: the module that has the node kinds and matchers.
        to: how far weights are pushed down, an enumeration.
        configure_transformer: the rewrite of a model by options.
        index: what makes indices of subscripts (`I`).
    """

    rc: ModuleType
    to: Any
    configure_transformer: Callable[..., Any]
    index: Any


def tapeout_system() -> System:
    """tapeout's own."""
    import tapeout
    from tapeout.passes import To, configure_transformer

    return System(tapeout, To, configure_transformer, tapeout.I)


def rust_system() -> System | None:
    """rust_circuit's, or None where it is not installed."""
    try:
        rc = importlib.import_module("rust_circuit")
    except ImportError:
        return None
    rewrites = importlib.import_module("rust_circuit.model_rewrites")
    utilities = importlib.import_module("rust_circuit.py_utils")
    return System(rc, rewrites.To, rewrites.configure_transformer, utilities.I)


@dataclass(frozen=True)
class Sizes:
    """What the example's loops run over."""

    layers: int
    heads: int
    length: int


# -- the model, bound to tokens that are still a symbol


def bind_tapeout(circuits: Mapping[str, Any], info: Any, length: int) -> Any:
    """The model of `load_circuit` on a symbol `tokens`."""
    rc = tapeout_system().rc
    tokens = rc.Symbol.new_with_random_uuid((length,), name="tokens")
    embeds = rc.GeneralFunction.gen_index(circuits["t.w.tok_embeds"], tokens, 0, name="tok_embeds")
    return info.bind_to_input(circuits["t.bind_w"], embeds, circuits.get("t.w.pos_embeds"))


def bind_rust(system: System, circuits: Mapping[str, Any], info: Any, length: int, activation: str) -> Any:
    """The same GPT-2 from rust_circuit's model library, with the same weights (copied)."""
    library = importlib.import_module("rust_circuit.module_library")
    rc = system.rc
    block = library.TransformerBlockParams(attn_bias=True, mlp_output_bias=True, mlp_act_type=activation)
    params = library.TransformerParams(block_params=block, num_layers=info.params.num_layers)
    arrays = [(node.name, rc.Array(_copy(node.value), name=node.name)) for node in circuits["t.bind_w"].nodes]
    weights = [(name.removesuffix("_arr"), array) for name, array in arrays]
    model = library.module_new_bind(params.get().body, *weights, name="t.bind_w")
    embeds, positions = (
        rc.Array(_copy(circuits[name].value), name=name) for name in ("t.w.tok_embeds", "t.w.pos_embeds")
    )
    tokens = rc.Symbol.new_with_random_uuid((length,), name="tokens")
    embedded = rc.GeneralFunction.gen_index(embeds, tokens, 0, name="tok_embeds")
    return library.TransformerInfo(params).bind_to_input(model, embedded, positions)


def _copy(value: torch.Tensor) -> torch.Tensor:
    return value.detach().contiguous()


# -- the walk

Step = tuple[str, Any]


def literal_walk(
    system: System, bound: Any, sizes: Sizes, to: str = "ATTN_HEAD_MLP_NORM", **options: Any
) -> Iterator[Step]:
    """The step and the circuit after each rewrite, from `configure_transformer` to the last rename.

    Args:
        system: which system.
        bound: the model bound to its input, `t.call`.
        sizes: what the loops run over.
        to: the name of how far weights are pushed down.
        options: for `configure_transformer`; the example's by default.
    """
    rc = system.rc
    circuit = yield from _until_blocks_are_renamed(system, bound, to, options or FULL_SPLIT)
    circuit = circuit.update(rc.Regex("[am]\\d(.h\\d)?$"), lambda c: c.rename(c.name + ".inner"))
    yield "rename blocks", circuit
    for old, new in block_names(sizes).items():
        circuit = circuit.update(old, lambda c, new=new: c.rename(new))
        yield "rename blocks", circuit
    circuit = split_by_position(system, circuit)
    yield "split by position", circuit
    names = position_names(sizes)
    yield "rename positions", circuit.update(rc.Matcher(*names), lambda c: c.rename(names[c.name]))


def table_walk(system: System, bound: Any, sizes: Sizes) -> Iterator[Step]:
    """The same with tapeout's renames by table, one rewrite a table."""
    rc = system.rc
    circuit = yield from _until_blocks_are_renamed(system, bound, "ATTN_HEAD_MLP_NORM", FULL_SPLIT)
    circuit = rc.rename_by_table(circuit, block_names(sizes))
    yield "rename blocks", circuit
    circuit = split_by_position(system, circuit)
    yield "split by position", circuit
    yield "rename positions", rc.rename_by_table(circuit, position_names(sizes))


def _until_blocks_are_renamed(
    system: System, bound: Any, to: str, options: Mapping[str, Any]
) -> Generator[Step, None, Any]:
    rc = system.rc
    circuit = bound.update("t.bind_w", lambda c: system.configure_transformer(c, system.to[to], **options))
    yield "configure", circuit
    circuit = rc.conform_all_modules(circuit)
    yield "conform", circuit
    circuit = circuit.cast_module().substitute().rename("logits")
    yield "substitute the call", circuit
    kept = rc.Matcher(rc.Regex("norm")) | rc.Matcher(rc.Regex("ln")) | rc.Matcher(rc.Regex("final"))
    while True:
        following = circuit.update(rc.Matcher(rc.Module) & ~kept, lambda c: c.cast_module().substitute())
        if following == circuit:
            return circuit
        circuit = following
        yield "substitute all but norms", circuit


def block_names(sizes: Sizes) -> dict[str, str]:
    """The example's renames of blocks and their parts, in its order."""
    names = {"t.inp_tok_pos": "embeds"}
    for layer in range(sizes.layers):
        names[f"b{layer}"] = "final.input" if layer == sizes.layers - 1 else f"a{layer + 1}.input"
        for part in ("m", "m.p_bias", "a", "a.p_bias"):
            names[f"b{layer}.{part}"] = f"{part[0]}{layer}{part[1:]}"
        for head in range(sizes.heads):
            names[f"b{layer}.a.h{head}"] = f"a{layer}.h{head}"
    return names


def split_by_position(system: System, circuit: Any) -> Any:
    """Each head and MLP becomes a concatenation of its positions."""
    rc, index = system.rc, system.index

    def split(c: Any) -> Any:
        parts = [rc.Index(c, index[i : i + 1], name=f"{c.name}_at_idx_{i}") for i in range(c.shape[0])]
        return rc.Concat(*parts, axis=0, name=f"{c.name}_by_pos")

    return circuit.update(rc.IterativeMatcher(rc.Regex("^(a\\d+.h\\d+?|m\\d+)$")), split)


def position_names(sizes: Sizes) -> dict[str, str]:
    """The example's renames of heads and MLPs at positions."""
    names = {}
    for layer in range(sizes.layers):
        for i in range(sizes.length):
            for head in range(sizes.heads):
                names[f"a{layer}.h{head}_at_idx_{i}"] = f"a{layer}_h{head}_t{i}"
            names[f"m{layer}_at_idx_{i}"] = f"m{layer}_t{i}"
    return names
