"""Circuits as text and back, as HTML, and the difference of two."""
