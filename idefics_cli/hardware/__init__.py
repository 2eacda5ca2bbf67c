"""What this computer has: processor, memory, GPUs and library versions."""
