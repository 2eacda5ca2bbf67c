"""Prefill, and the reuse of the KV cache of an earlier prompt."""
