"""Training of models of every family: label rule, optimizer, learning rate and precision."""
