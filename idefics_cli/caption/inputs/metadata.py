"""Fields of prompts from the metadata of a picture: its date, description and keywords."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.sinks.xmp_packet import DATES, DESCRIPTION, KEYWORDS, MOST_BYTES, Packet
from idefics_cli.core.files import read_regular_file
from idefics_cli.core.sources import is_uri

METADATA = ("date", "description", "keywords")
"""The fields that come from metadata."""

_MOST_PICTURE_BYTES = 64 * 2**20
_DAY = re.compile(r"(\d{4})[:-](\d\d)[:-](\d\d)")


def metadata_values(picture: CaptionItem, data: bytes | None) -> dict[str, str]:
    """Return the value of each of `METADATA`; "" if a picture has none.

    XMP sidecars (`a.jpg.xmp`, then `a.xmp`) come before the picture, as in photo programs.

    Args:
        picture: The picture. That of a URL has no metadata before it is downloaded.
        data: The bytes of the picture, if they were read already.
    """
    from idefics_cli.images.metadata import read_metadata

    source = picture.attachment.source
    if is_uri(source):
        return dict.fromkeys(METADATA, "")
    if data is None:
        data = _read(source, _MOST_PICTURE_BYTES)
    stored = read_metadata(io.BytesIO(data))
    packets = [*_packets(source), *_packet(stored.xmp)]
    descriptions = [*(packet.text(DESCRIPTION).text for packet in packets), stored.description]
    keywords = (packet.items(KEYWORDS) for packet in packets)
    dates = [stored.taken, *(date for packet in packets for date in packet.items(*DATES))]
    day = next(filter(None, map(_DAY.match, dates)), None)
    return {
        "date": "-".join(day.groups()) if day else "",
        "description": next(filter(None, descriptions), ""),
        "keywords": ", ".join(next(filter(None, keywords), ())),
    }


def _packets(source: str) -> Iterator[Packet]:
    for path in (f"{source}.xmp", f"{os.path.splitext(source)[0]}.xmp"):
        yield from _packet(_read(path, MOST_BYTES))


def _packet(data: bytes) -> Iterator[Packet]:
    if data:
        try:
            yield Packet(data)
        except ValueError:  # damaged metadata counts as none
            return


def _read(path: str, limit_bytes: int) -> bytes:
    try:
        return read_regular_file(Path(path), limit_bytes=limit_bytes)
    except (OSError, ValueError):  # ValueError: NUL in the name
        return b""
