"""Image features: how pictures are encoded, when, and how long the features are kept."""
