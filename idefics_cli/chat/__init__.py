"""The chat: a conversation as a value, all that changes it, and its storage; no terminal."""
