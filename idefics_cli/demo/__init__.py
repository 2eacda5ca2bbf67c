"""The built-in model: the scenes it knows, its weights, its training and its evaluation."""
