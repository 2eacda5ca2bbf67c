"""Captioning of many pictures: the work list, the run, and the output of the captions."""
