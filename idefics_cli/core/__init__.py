"""Errors, types, text, paths and files for every other package; standard library only."""
