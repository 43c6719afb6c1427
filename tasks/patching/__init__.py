"""Path patching, activation patching and ablation, as exact edits of a circuit."""

from tapeout.tasks.patching.names import END, NodeName, Site, parse_name, parse_site
from tapeout.tasks.patching.places import Place, find, locate, node_names

__all__ = ["END", "NodeName", "Place", "Site", "find", "locate", "node_names", "parse_name", "parse_site"]
