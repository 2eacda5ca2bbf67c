"""bfloat16 weights stored in 12 bits, without loss."""
