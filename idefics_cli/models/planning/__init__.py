"""A model and a machine become a LoadSpec, with the reason for each choice."""
