"""Whether what was compiled computes what the reference does: comparing, bisecting, tolerances."""
