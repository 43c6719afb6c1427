"""Compiled circuits in files, and what certifies them."""
