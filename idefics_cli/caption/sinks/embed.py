"""Captions in the pictures themselves, as metadata that exiftool writes."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

from idefics_cli.caption.sinks.base import SidecarError, Target
from idefics_cli.caption.sinks.exiftool import ExifTool, find_exiftool
from idefics_cli.caption.sinks.xmp import XmpSink
from idefics_cli.caption.sinks.xmp_packet import ALT_TEXT, DESCRIPTION, Name, Text, digest_of
from idefics_cli.core.errors import UsageError
from idefics_cli.core.escapes import NOT_UTF8
from idefics_cli.core.files import check_replaceable, stamp_of_file, sync_folder, unfinished_path
from idefics_cli.core.sources import is_uri
from idefics_cli.core.types import CaptionRecord
from idefics_cli.images.tars import split_member

# The tags of a description, by their names in exiftool: XMP, IPTC-IIM 4.2 (2:120) and EXIF 2.32
# (0x010e). The Metadata Working Group recommends these three (Guidelines for Handling Image
# Metadata 2.0, section 5.4).
_XMP: Mapping[Name, str] = {
    DESCRIPTION: "XMP-dc:Description",
    ALT_TEXT: "XMP-iptcCore:AltTextAccessibility",
}
_DIGESTS: Mapping[Name, str] = {
    DESCRIPTION: "XMP-idefics_cli:CaptionDigest",
    ALT_TEXT: "XMP-idefics_cli:AltTextDigest",
}
_IPTC, _CHARSET, _EXIF = "IPTC:Caption-Abstract", "IPTC:CodedCharacterSet", "IFD0:ImageDescription"
_PNG = "PNG:Description"
_TYPE = "File:FileType"
# With `*`, exiftool reads the texts in other languages too.
_TAGS = (*(f"{tag}*" for tag in _XMP.values()), *_DIGESTS.values(), "IPTC:all", _EXIF, _PNG, _TYPE)

_WITH_IPTC = frozenset({"JPEG", "TIFF", "MPO"})
# Types of files into which captions are written. Raw files of cameras are missing, because their
# makers do not document the formats.
_TYPES = _WITH_IPTC | {
    "PNG",
    "APNG",
    "WEBP",
    "Extended WEBP",
    "HEIC",
    "HEIF",
    "AVIF",
    "GIF",
    "JP2",
    "JXL",
}
_MOST_IPTC_BYTES = 2000
_READ_AT_ONCE = 100
# Cameras write such a text as the description of every picture, so it counts as no description.
_BY_CAMERA = re.compile(r"([A-Z]+ ){0,2}DIGITAL CAMERA|SONY DSC|Exif_JPEG_PICTURE")


class EmbedSink(XmpSink):
    """Writes each caption into its picture; see `TxtSink`.

    A new file replaces the picture when it is complete and on the disk, so that a killed run
    damages nothing. The pixels, all other metadata, the times and the mode of the file stay. A
    description that a person wrote is never replaced; see `XmpSink`.

    Args:
        target: Where the sink writes; it has no path.
    """

    run_name = "idefics-caption-embed"

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._exiftool: ExifTool | None = None
        # Path -> stamp of the file after this run wrote into it. If two names are links to one
        # picture, the second name finds a file that this run itself has changed.
        self._written: dict[str, str | None] = {}

    def check_place(self) -> None:
        """Check that exiftool is there; see `Sink.check_place`."""
        find_exiftool()

    def __enter__(self) -> Self:
        """Find the descriptions that exist; see `Sink.__enter__`.

        Raises:
            UsageError: If exiftool is missing, or a picture is not a file; see `Sink`.
        """
        self._exiftool = ExifTool(find_exiftool())
        try:
            return super().__enter__()
        except BaseException:
            self._exiftool.close()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End exiftool."""
        if self._exiftool is not None:
            self._exiftool.close()

    def find_paths(self) -> dict[str, str]:
        """Return the path of each picture by its key; links are followed."""
        for picture in self._target.pictures:
            source = picture.attachment.source
            if is_uri(source) or split_member(source) is not None:
                raise UsageError(
                    f"`{picture.key}` is not a file, and `--embed` writes into files",
                    hint="leave it out, or write captions with `-o FILE`",
                )
        return {p.key: os.path.realpath(p.attachment.source) for p in self._target.pictures}

    def shown(self, key: str) -> str:
        """Return the picture as the user names it; see `TxtSink.shown`."""
        return key

    def find_captions(self) -> set[str]:
        """Return the keys of the pictures that have a description; see `TxtSink`."""
        assert self._exiftool is not None
        found = set()
        for some in _batches(dict.fromkeys(self._paths.values())):
            with suppress(OSError):  # these pictures fail when their captions are written
                for path, row in self._exiftool.read(_TAGS, some).items():
                    if self.counts([_text(row, name) for name in self.names()]):
                        found.add(path)
        return {key for key, path in self._paths.items() if path in found}

    def store(self, record: CaptionRecord, path: Path) -> CaptionRecord:
        """Write the texts of *record* into the picture *path*; see `TxtSink.store`.

        Returns:
            The record with the digest and the stamp of the changed picture.
        """
        assert self._exiftool is not None
        shown = self.shown(record.file_name)
        former, sharp, columns = (record.stamp or "").partition("#")
        before = os.stat(path)
        now = stamp_of_file(path)
        if former and now not in (former, self._written.get(str(path))):
            raise SidecarError(f"`{shown}` has changed since it was read", hint=_AGAIN)
        found = list(self._exiftool.read(_TAGS, [str(path)]).values())
        row = found[0] if found else {}
        if row.get(_TYPE) not in _TYPES:
            reason = f"files of type {row[_TYPE]}" if _TYPE in row else "what it cannot read"
            raise SidecarError(
                f"cannot write into `{shown}`: exiftool cannot change {reason}", hint=_BESIDE
            )
        texts = {
            name: self.merged(_text(row, name), text, f"`{shown}`")
            for name, text in self.texts(record).items()
            if text.strip()
        }
        values = _values(texts, row) | {"XMP-xmp:MetadataDate": self.date()}
        sha256 = self._replace(path, values, before, shown)
        self._written[str(path)] = stamp = stamp_of_file(path)
        return replace(record, sha256=sha256, stamp=f"{stamp}{sharp}{columns}")

    def _replace(
        self, path: Path, values: Mapping[str, str], before: os.stat_result, shown: str
    ) -> str:
        """Replace the picture *path* by one with *values*; return the digest of the new file."""
        assert self._exiftool is not None
        # exiftool takes the format from the extension, so the new file has that of the picture.
        new = Path(f"{unfinished_path(path)}{path.suffix}")
        try:
            shutil.copyfile(path, new)
            try:
                self._exiftool.write(values, str(new))
            except OSError as error:
                message = f"cannot write into `{shown}`: {error}"
                raise SidecarError(message, hint=_BESIDE) from error
            shutil.copystat(path, new)
            if hasattr(os, "chown"):
                with suppress(OSError):  # only the administrator can give a file away
                    os.chown(new, before.st_uid, before.st_gid)
            with new.open("rb+") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            check_replaceable(path, before)
            os.replace(new, path)
        finally:
            for left in (new, new.with_name(f"{new.name}_exiftool_tmp")):
                left.unlink(missing_ok=True)
        sync_folder(path.parent)
        return sha256


_BESIDE = "`-f xmp` writes a sidecar"
_AGAIN = "run the same command again"


def _batches(paths: Collection[str]) -> Iterator[list[str]]:
    """Yield *paths* as `ExifTool.read` takes them."""
    rest = (path for path in paths if not NOT_UTF8.search(path))
    yield from ([path] for path in paths if NOT_UTF8.search(path))
    while some := list(islice(rest, _READ_AT_ONCE)):
        yield some


def _text(row: Mapping[str, str], name: Name) -> Text:
    """Return the text of *name* in the values *row* of a picture; that of a person, if any."""
    tag = _XMP[name]
    found = [text for key, text in row.items() if key == tag or key.startswith(f"{tag}-")]
    if name == DESCRIPTION:
        camera = row.get(_EXIF, "").strip()
        found += [
            row.get(_IPTC, ""),
            row.get(_PNG, ""),
            "" if _BY_CAMERA.fullmatch(camera) else camera,
        ]
    texts = [text.strip() for text in found if text.strip()]
    by_person = [text for text in texts if digest_of(text) != row.get(_DIGESTS[name])]
    if by_person:
        return Text(by_person[0])
    return Text(texts[0], is_ours=True) if texts else Text()


def _values(texts: Mapping[Name, Text], row: Mapping[str, str]) -> dict[str, str]:
    """Return what exiftool is to write of *texts* into a picture with the values *row*."""
    values = {}
    for name, merged in texts.items():
        values[_XMP[name]] = merged.text
        values[_DIGESTS[name]] = digest_of(merged.text) if merged.is_ours else ""
    if DESCRIPTION not in texts or row[_TYPE] not in _WITH_IPTC:
        return values
    text = texts[DESCRIPTION].text
    values[_EXIF] = text
    has_iptc = any(key.startswith("IPTC:") for key in row)
    # The IPTC texts of a file share one encoding, and exiftool would change it without converting
    # the other texts. So a file whose IPTC is not UTF-8 gets no IPTC caption.
    if not has_iptc or row.get(_CHARSET) == "UTF8":
        values[_CHARSET] = "UTF8"
        values[_IPTC] = text if len(text.encode()) <= _MOST_IPTC_BYTES else ""
    return values
