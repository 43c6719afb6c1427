"""The fx backend: a circuit as a torch.fx GraphModule that a person can read."""

from tapeout.backends.fx.lower import lower

__all__ = ["lower"]
