"""Settings: the one table of defaults, and where each value comes from."""
