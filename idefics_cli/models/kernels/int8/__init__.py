"""Linear layers with 8-bit weights, and their kernels."""
