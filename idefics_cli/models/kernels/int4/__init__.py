"""Linear layers with 4-bit weights, and their kernels."""
