"""rust_circuit beside the backends: circuits as its own, to compare with. It is no backend of `compile`."""

from tapeout.backends.rust_circuit.convert import installed, to_rust

__all__ = ["installed", "to_rust"]
