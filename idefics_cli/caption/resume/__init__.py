"""What a captioning run has done, so that a later run can continue it."""
