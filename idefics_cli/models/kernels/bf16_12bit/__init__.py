"""Linear layers with bfloat16 weights in 12 bits, without loss, and their kernels."""
