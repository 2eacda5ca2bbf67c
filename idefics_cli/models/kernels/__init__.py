"""What computes on a CPU: layers and functions in place of those of torch and transformers."""
