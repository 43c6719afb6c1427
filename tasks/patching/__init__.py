"""Path patching, activation patching and ablation, as exact edits of a circuit; sweeps over many of them."""

from tapeout.models.parts.names import END, HeadPart, NodeName, Site, parse_name, parse_site
from tapeout.models.parts.places import Place, find, locate, node_names
from tapeout.tasks.patching.activations import Ablate, ActivationPatch, ablate, activation_patch
from tapeout.tasks.patching.data import PATCH_TOKENS
from tapeout.tasks.patching.expose import Exposed, expose
from tapeout.tasks.patching.masks import Maskable, Masked, mask_name, masked
from tapeout.tasks.patching.paths import PathPatch, path_patch
from tapeout.tasks.patching.routes import Path, parse_path
from tapeout.tasks.patching.sweeps.edits import sweep_edits
from tapeout.tasks.patching.sweeps.result import SweepResult
from tapeout.tasks.patching.sweeps.sweep import Estimate, Sweep, sweep
from tapeout.tasks.patching.sweeps.variants import (
    Variant,
    Variants,
    direct,
    edges,
    heads,
    heads_by_position,
    listed,
    mlps,
    residual_streams,
    sets,
)

__all__ = [
    "END",
    "PATCH_TOKENS",
    "Ablate",
    "ActivationPatch",
    "Estimate",
    "Exposed",
    "HeadPart",
    "Maskable",
    "Masked",
    "NodeName",
    "Path",
    "PathPatch",
    "Place",
    "Site",
    "Sweep",
    "SweepResult",
    "Variant",
    "Variants",
    "ablate",
    "activation_patch",
    "direct",
    "edges",
    "expose",
    "find",
    "heads",
    "heads_by_position",
    "listed",
    "locate",
    "mask_name",
    "masked",
    "mlps",
    "node_names",
    "parse_name",
    "parse_path",
    "parse_site",
    "path_patch",
    "residual_streams",
    "sets",
    "sweep",
    "sweep_edits",
]
