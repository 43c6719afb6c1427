"""`configure_transformer`: the usual passes on a model, chosen by options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

from tapeout.ir import Circuit
from tapeout.ir.errors import PassError
from tapeout.passes.base import Pass
from tapeout.passes.clear_block_module import ClearBlockModule
from tapeout.passes.flatten_res import FlattenRes
from tapeout.passes.pipeline import Observer, Pipeline
from tapeout.passes.pull_up_bias import PullUpBias
from tapeout.passes.pull_up_head_split import PullUpHeadSplit
from tapeout.passes.push_down_weights import PushDownWeights, To, require_bound_model
from tapeout.passes.split_by_head import SplitByHead, SplitConfig


def configure_transformer(
    circuit: Circuit,
    to: To | None = To.ATTN_MLP_NORM,
    use_pull_up_bias: bool = True,
    use_strip_arr: bool = True,
    split_by_head_config: SplitConfig | None = None,
    use_pull_up_head_split: bool = False,
    use_clear_block_module: bool = True,
    use_flatten_res: bool = False,
    flatten_components: bool = False,
    check_valid: bool = True,
    observers: Iterable[Observer] = (),
) -> Circuit:
    """Runs the passes that the options ask for on the module `t.bind_w` of a model, in their order.

    Args:
        circuit: the module `t.bind_w`.
        to: how far weights are pushed down (`PushDownWeights`); None for not at all.
        use_pull_up_bias: see `PullUpBias`.
        use_strip_arr: see `PushDownWeights`.
        split_by_head_config: see `SplitByHead`; None for no split.
        use_pull_up_head_split: see `PullUpHeadSplit`; for the layers that are split.
        use_clear_block_module: see `ClearBlockModule`.
        use_flatten_res: see `FlattenRes`.
        flatten_components: see `FlattenRes`.
        check_valid: refuse options that do not go together.
        observers: see `Pipeline`.

    Raises:
        PassError: if options do not go together, or the circuit is not such a module.
    """
    passes = transformer_passes(
        to, use_pull_up_bias, use_strip_arr, split_by_head_config, use_pull_up_head_split, use_clear_block_module,
        use_flatten_res, flatten_components, check_valid,
    )  # fmt: skip
    require_bound_model("configure_transformer", circuit)
    return Pipeline(passes, observers)(circuit)


def transformer_passes(
    to: To | None = To.ATTN_MLP_NORM,
    use_pull_up_bias: bool = True,
    use_strip_arr: bool = True,
    split_by_head_config: SplitConfig | None = None,
    use_pull_up_head_split: bool = False,
    use_clear_block_module: bool = True,
    use_flatten_res: bool = False,
    flatten_components: bool = False,
    check_valid: bool = True,
) -> list[Pass]:
    """The passes that `configure_transformer` runs for these options.

    Raises:
        PassError: if options do not go together.
    """
    if check_valid:
        _check_options(to, use_strip_arr, split_by_head_config, use_pull_up_head_split, use_clear_block_module,
                       use_flatten_res, flatten_components)  # fmt: skip
    passes: list[Pass] = []
    if use_pull_up_bias:
        passes.append(PullUpBias())
    if to is not None:
        passes.append(PushDownWeights(to, use_strip_arr))
    if split_by_head_config is not None:
        passes.append(SplitByHead(split_by_head_config))
    if use_pull_up_head_split:
        passes.append(PullUpHeadSplit(_layers(split_by_head_config)))
    if use_clear_block_module:
        passes.append(ClearBlockModule())
    if use_flatten_res:
        passes.append(FlattenRes(flatten_components))
    return passes


def _layers(config: SplitConfig | None) -> frozenset[int] | None:
    return frozenset(config) if isinstance(config, (Set, Mapping)) else None


def _check_options(
    to: To | None,
    strip_arr: bool,
    split: SplitConfig | None,
    pull_up_split: bool,
    clear_blocks: bool,
    flatten: bool,
    flatten_components: bool,
) -> None:
    needs = [
        (strip_arr and to is None, "use_strip_arr", "`to` (else arrays and symbols share names)"),
        (split is not None and to is not To.ATTN_HEAD_MLP_NORM, "split_by_head_config", "to=To.ATTN_HEAD_MLP_NORM"),
        (pull_up_split and split is None, "use_pull_up_head_split", "split_by_head_config"),
        (clear_blocks and (to is None or to is To.BLOCK), "use_clear_block_module", "to=To.ATTN_MLP or further"),
        (flatten and not clear_blocks, "use_flatten_res", "use_clear_block_module"),
        (flatten_components and not flatten, "flatten_components", "use_flatten_res"),
    ]
    for broken, option, need in needs:
        if broken:
            raise PassError(f"configure_transformer: {option} needs {need}", hint=f"set {need}, or leave {option} out")
