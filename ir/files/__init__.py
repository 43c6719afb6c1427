"""Circuits in folders that appear whole or not at all."""
