"""The engine that asks a server with OpenAI's API; it loads no model and needs no torch."""
