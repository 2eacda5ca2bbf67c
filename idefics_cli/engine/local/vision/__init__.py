"""Image features: which tiles go into one forward, and where they run."""
