"""Path patching, activation patching and ablation, as exact edits of a circuit."""

from tapeout.tasks.patching.activations import Ablate, ActivationPatch, ablate, activation_patch
from tapeout.tasks.patching.data import PATCH_TOKENS
from tapeout.tasks.patching.expose import Exposed, expose
from tapeout.tasks.patching.masks import Maskable, Masked, mask_name, masked
from tapeout.tasks.patching.names import END, HeadPart, NodeName, Site, parse_name, parse_site
from tapeout.tasks.patching.paths import PathPatch, path_patch
from tapeout.tasks.patching.places import Place, find, locate, node_names
from tapeout.tasks.patching.routes import Path, parse_path

__all__ = [
    "END",
    "PATCH_TOKENS",
    "Ablate",
    "ActivationPatch",
    "Exposed",
    "HeadPart",
    "Maskable",
    "Masked",
    "NodeName",
    "Path",
    "PathPatch",
    "Place",
    "Site",
    "ablate",
    "activation_patch",
    "expose",
    "find",
    "locate",
    "mask_name",
    "masked",
    "node_names",
    "parse_name",
    "parse_path",
    "parse_site",
    "path_patch",
]
