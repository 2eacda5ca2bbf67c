"""Measurements in fresh processes: start, load and peak memory."""
