"""Decode steps: the token loop, slots, sampling and CUDA graphs."""
