"""The self-check of a machine: each way to run the model is asked questions with known answers."""
