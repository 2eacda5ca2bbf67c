"""Request in, text out. Importing this package is cheap; the work is in `local/`."""
