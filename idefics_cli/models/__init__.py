"""What differs between checkpoints; the only place that knows a family by name."""
