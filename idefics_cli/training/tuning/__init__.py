"""A tuning run: what is trained, the steps with evaluations and checkpoints, and its folder."""
