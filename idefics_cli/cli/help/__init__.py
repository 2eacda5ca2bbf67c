"""Help pages, and suggestions for mistyped commands and options."""
