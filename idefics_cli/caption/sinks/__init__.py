"""Where caption records go: one module per format."""
