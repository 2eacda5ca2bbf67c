"""Training for every family: optimizer, schedule and precision."""
