"""One module per prompt format and set of processor rules."""
