"""Engines, which answer requests with text. `protocol` and `factory` are cheap to import."""
