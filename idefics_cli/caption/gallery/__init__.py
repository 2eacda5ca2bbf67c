"""A page that shows the captions of a run beside the images."""
