"""Where captions are made: one module per place."""
