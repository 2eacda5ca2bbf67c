"""Loading: a `LoadSpec` becomes a model with its processor and its family."""
