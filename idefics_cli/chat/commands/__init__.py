"""Slash commands: their table, their dispatch and their completion."""
