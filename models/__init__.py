"""Models: from a checkpoint to a circuit. One file a family, over the shared parts in `library`."""

from tapeout.models.info import TransformerInfo, TransformerParams, rotary_tables
from tapeout.models.load import FAMILIES, circuit_of, load_circuit, load_gpt2_small_circuit

__all__ = [
    "FAMILIES", "TransformerInfo", "TransformerParams", "circuit_of", "load_circuit", "load_gpt2_small_circuit",
    "rotary_tables",
]  # fmt: skip
