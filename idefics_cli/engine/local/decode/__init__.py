"""Decoding: the token loop, slots, sampling, CUDA graphs, and text from tokens."""
