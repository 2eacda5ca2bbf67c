"""An HTTP server for clients of OpenAI's API."""
