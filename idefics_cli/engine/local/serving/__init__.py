"""Requests from any thread to their outcomes: queues, prompts, rows, and the loop over them."""
