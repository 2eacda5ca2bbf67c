"""Model families, checkpoints, plans, kernels and loading."""
