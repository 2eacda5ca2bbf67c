"""The built-in model: the scenes that it knows, its weights, its training and its evaluation."""
