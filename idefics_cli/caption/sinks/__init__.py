"""Where caption records go: one module per format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from idefics_cli.caption.sinks.base import Sink, Target
from idefics_cli.caption.sinks.csv import CsvSink
from idefics_cli.caption.sinks.jsonl import JsonlSink
from idefics_cli.caption.sinks.parquet import ParquetSink
from idefics_cli.caption.sinks.tsv import TsvSink
from idefics_cli.caption.sinks.txt import TxtSink

SINKS: Mapping[str, Callable[[Target], Sink]] = MappingProxyType(
    {"tsv": TsvSink, "jsonl": JsonlSink, "csv": CsvSink, "parquet": ParquetSink, "txt": TxtSink}
)
"""Name of a format -> what writes it."""
