"""Model families: how each makes prompts, pictures and inputs for its models."""
