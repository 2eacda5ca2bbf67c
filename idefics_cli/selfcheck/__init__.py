"""The self-check of a machine: every way to compute answers questions whose answers are known."""
