"""What a reply must match: fields, JSON Schemas and patterns, checked before a model is loaded."""
