"""Training data: every format becomes rows of conversations, whose answers are learned."""
