"""A conversation as a value, and how it is kept on disk; no terminal."""
