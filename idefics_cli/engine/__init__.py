"""Engines: requests in, text out. The interface is cheap to import; `local/` does the work."""
