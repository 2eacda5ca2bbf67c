"""The training of an adapter by both sides, each in a process of its own."""
