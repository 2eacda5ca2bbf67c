"""Captioning many pictures: discovery, the run, and where the captions go."""
