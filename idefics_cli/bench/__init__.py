"""This tool against plain transformers, side by side in one run."""
