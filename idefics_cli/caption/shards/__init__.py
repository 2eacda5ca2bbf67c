"""Shards: the parts of one run that the tasks of a job array caption, each with its own output."""
