"""The serving of requests from any thread: queues, prompts, rows, and the loop over them."""
