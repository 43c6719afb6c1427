"""Passes: from a circuit to a circuit. One file a pass; each is registered in `PASSES` with its contract."""

from tapeout.passes.add_batch import AddBatch
from tapeout.passes.base import PASSES, Pass
from tapeout.passes.clear_block_module import ClearBlockModule, clear_block_module
from tapeout.passes.conform import ConformAllModules, conform_all_modules
from tapeout.passes.flatten_res import FlattenRes, flatten_res
from tapeout.passes.inline import Inline
from tapeout.passes.kernels import Kernels
from tapeout.passes.nest_sums import NestSums
from tapeout.passes.pipeline import PassRecord, Pipeline, count_nodes, print_each, verify
from tapeout.passes.pull_up_bias import PullUpBias, pull_up_bias
from tapeout.passes.pull_up_head_split import PullUpHeadSplit, pull_up_head_split
from tapeout.passes.push_down_weights import (
    PushDownTransformerTo,
    PushDownWeights,
    To,
    push_down_transformer_weights,
)
from tapeout.passes.push_gather import PushGather
from tapeout.passes.push_index import PushIndex
from tapeout.passes.rename import Rename, rename_by_table
from tapeout.passes.reroll import Reroll
from tapeout.passes.sampling import RandomSampleSpec, RunDiscreteVarAllSpec, Sampler
from tapeout.passes.share_rows import ShareRows
from tapeout.passes.simplify import Simplify
from tapeout.passes.split_by_head import SplitByHead, split_by_head
from tapeout.passes.split_to_concat import SplitToConcat, split_to_concat
from tapeout.passes.strip_names import StripNames, strip_names
from tapeout.passes.substitute import SubstituteModules, substitute_all_modules, substitute_modules
from tapeout.passes.transformer import configure_transformer, transformer_passes

__all__ = [
    "PASSES",
    "AddBatch",
    "ClearBlockModule",
    "ConformAllModules",
    "FlattenRes",
    "Inline",
    "Kernels",
    "NestSums",
    "Pass",
    "PassRecord",
    "Pipeline",
    "PullUpBias",
    "PullUpHeadSplit",
    "PushDownTransformerTo",
    "PushDownWeights",
    "PushGather",
    "PushIndex",
    "RandomSampleSpec",
    "Rename",
    "Reroll",
    "RunDiscreteVarAllSpec",
    "Sampler",
    "ShareRows",
    "Simplify",
    "SplitByHead",
    "SplitToConcat",
    "StripNames",
    "SubstituteModules",
    "To",
    "clear_block_module",
    "configure_transformer",
    "conform_all_modules",
    "count_nodes",
    "flatten_res",
    "print_each",
    "pull_up_bias",
    "pull_up_head_split",
    "push_down_transformer_weights",
    "rename_by_table",
    "split_by_head",
    "split_to_concat",
    "strip_names",
    "substitute_all_modules",
    "substitute_modules",
    "transformer_passes",
    "verify",
]  # fmt: skip
