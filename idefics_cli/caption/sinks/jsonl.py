"""A JSON object per line, in the `metadata.jsonl` layout that dataset tools read."""

from __future__ import annotations

import json

from idefics_cli.caption.sinks.base import UNSAFE, LineSink
from idefics_cli.core.types import CaptionRecord


class JsonlSink(LineSink):
    """Writes every record, failures too; each row has every field."""

    def line(self, record: CaptionRecord) -> bytes:
        r"""Return the row of *record* as ASCII-safe UTF-8.

        A byte of a file name that is no UTF-8 is written as its surrogate (`\udcff`, PEP 383),
        which Python's `json` and `os.fsencode` turn back into the byte.
        """
        text = json.dumps(_row(record), ensure_ascii=False)
        text = UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
        # What UTF-8 cannot hold is lone surrogates; Python escapes them as JSON does.
        return text.encode(errors="backslashreplace")


def _row(record: CaptionRecord) -> dict[str, str | int | float | None]:
    return {
        "file_name": record.file_name,
        "caption": record.caption,
        "status": "ok" if record.error is None else "error",
        "error": record.error,
        "error_kind": record.error_kind,
        "finish": record.finish,
        "width": record.width,
        "height": record.height,
        "tokens": record.new_tokens,
        "seconds": round(record.seconds, 3),
    }
