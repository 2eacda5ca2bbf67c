"""Loads what a plan says: a LoadSpec becomes a model with its processor and its family."""
