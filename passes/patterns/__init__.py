"""The patterns that the kernels pass recognises, a file a kind; each takes a node and gives the node or its kernel."""
