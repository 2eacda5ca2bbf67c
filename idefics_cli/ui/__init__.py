"""The user interface in a terminal."""
