"""Collecting: the rows of all shards of a run become one output."""
