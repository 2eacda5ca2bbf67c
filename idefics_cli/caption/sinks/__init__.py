"""Where caption records go: one module per format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from idefics_cli.caption.sinks.base import Sink, Target
from idefics_cli.caption.sinks.jsonl import JsonlSink
from idefics_cli.caption.sinks.tsv import TsvSink

SINKS: Mapping[str, Callable[[Target], Sink]] = MappingProxyType(
    {"tsv": TsvSink, "jsonl": JsonlSink}
)
"""Name of a format -> what writes it."""
