"""Completion in shells: scripts made from the commands, and quick answers for what changes."""
