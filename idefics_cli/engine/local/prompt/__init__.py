"""Prefill, the KV cache, and the reuse of prefixes."""
