"""Settings: one table of defaults, and the merge of flags, environment and file."""
