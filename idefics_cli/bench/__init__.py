"""The benchmark: this tool against plain transformers, measured side by side in one run.

In this package, "ours" is the engine of this tool, and "plain" is transformers called as its
documentation shows.
"""
