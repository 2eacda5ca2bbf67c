"""The inputs of captioning: the work list, and prompt templates."""
