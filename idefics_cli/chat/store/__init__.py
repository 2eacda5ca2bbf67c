"""Sessions on disk: journals, locks and pictures."""
