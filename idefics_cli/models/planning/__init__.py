"""Planning: all choices for a model on a machine, as a `LoadSpec`, with a reason for each."""
