"""Decode steps, slots, sampling, CUDA graphs, and text from tokens."""
