"""A decode step of the whole text model in one compiled call."""
