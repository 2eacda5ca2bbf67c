"""Image features: which tiles go into one forward, and where it runs."""
