"""Bytes from anywhere become an upright RGB image, within limits."""
