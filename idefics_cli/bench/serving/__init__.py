"""Servers of both sides, and clients that ask them over HTTP."""
