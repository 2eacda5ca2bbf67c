"""Models: families, checkpoints, plans, kernels and loading."""
