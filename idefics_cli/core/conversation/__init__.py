"""Conversations in rows of files: the shapes of OpenAI, transformers, LLaVA and ShareGPT."""
