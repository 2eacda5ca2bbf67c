"""Layers and functions that compute on a CPU."""
