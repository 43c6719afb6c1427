"""The kinds of nodes, one file each with all that the IR knows of it, and what they are made of."""
