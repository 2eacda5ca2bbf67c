"""The report: a page that shows the captions of a run beside the pictures."""
