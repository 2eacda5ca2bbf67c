"""The terminal: streams, escape sequences, pixels and folding of lines."""
