"""Slash commands: their table, dispatch and completion, and the reading of a line."""
