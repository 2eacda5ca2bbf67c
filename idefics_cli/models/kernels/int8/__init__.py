"""8-bit weights."""
