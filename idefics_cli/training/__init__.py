"""Training for every family: label rule, optimizer, learning rate and precision."""
