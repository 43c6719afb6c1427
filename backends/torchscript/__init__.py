"""The TorchScript backend: the fx module scripted and frozen, nothing more."""
