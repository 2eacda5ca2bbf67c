"""Resuming: the journal of what a captioning run has done, from which a later run continues."""
