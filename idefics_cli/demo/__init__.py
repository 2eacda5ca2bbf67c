"""The built-in model: its scenes, its weights, its training and its evaluation."""
