"""Training and evaluation of the built-in model."""
