"""Hardware: the processor, memory, GPUs and library versions of this computer."""
