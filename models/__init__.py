"""Models: from a checkpoint to a circuit. One file a family, over the shared parts in `library`."""

from tapeout.models.families import FAMILIES
from tapeout.models.info import TransformerInfo, TransformerParams, rotary_tables
from tapeout.models.load import circuit_of, load_circuit, load_gpt2_small_circuit
from tapeout.models.split import short_names, split_circuit

__all__ = [
    "FAMILIES", "TransformerInfo", "TransformerParams", "circuit_of", "load_circuit", "load_gpt2_small_circuit",
    "rotary_tables", "short_names", "split_circuit",
]  # fmt: skip
