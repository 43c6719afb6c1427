"""The inductor backend: torch.compile of the fx module, ahead-of-time packages, CUDA graphs."""
