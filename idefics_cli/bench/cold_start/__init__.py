"""Measurements in fresh processes: time to start, time to load, and peak memory."""
