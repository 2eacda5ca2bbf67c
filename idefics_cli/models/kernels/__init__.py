"""Kernels: layers and functions that replace those of torch and transformers."""
