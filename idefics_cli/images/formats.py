"""Recognition of file formats by the first bytes; names and extensions are not trusted."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from typing import Literal

HEAD_BYTES = 4096
"""Number of bytes that `identify` needs."""

_CONVERT = "convert it to PNG or JPEG first"
_SUPPORTED = (
    "supported: JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF, JPEG 2000, PSD and more; "
    "HEIC with `pip install 'idefics-cli[heif]'`"
)


@dataclass(frozen=True, slots=True)
class FileFormat:
    """A format of files, which `identify` recognises.

    Attributes:
        name: Name with its article, for messages: "a PNG picture", "a PDF document".
        plugin: Pillow's name of the format; None if it is not a readable picture.
        kind: `ImageError.kind` if *plugin* is None.
        hint: Hint for the user if *plugin* is None.
        is_video: Whether `Video` opens it.
    """

    name: str
    plugin: str | None = None
    kind: Literal["not_an_image", "unsupported"] = "not_an_image"
    hint: str = _SUPPORTED
    is_video: bool = False


def identify(head: bytes) -> FileFormat:
    """Return the format of a file with the first `HEAD_BYTES` bytes *head*."""
    if not head:
        return FileFormat("an empty file", hint="it may be an unfinished copy or download")
    for pattern, content in _SIGNATURES:
        if pattern.match(head):
            return content
    if head[4:8] == b"ftyp":
        return _base_media(head)
    text = _text(head)
    if text is not None:
        return _markup(text)
    if _TARGA.match(head):
        return _picture("TGA", "TGA")
    return FileFormat("not a picture in a known format")


def _picture(name: str, plugin: str) -> FileFormat:
    article = "an" if name in ("AVIF", "icon", "ICNS", "SGI") else "a"
    return FileFormat(f"{article} {name} picture", plugin)


def _unsupported(name: str, hint: str = _CONVERT) -> FileFormat:
    return FileFormat(name, None, "unsupported", hint)


_DEVELOP = "it has no preview that shows the photo: develop it to JPEG or TIFF first"
_VIDEO = FileFormat(
    "a video",
    None,
    "unsupported",
    "save a frame of it as a picture: ffmpeg -i VIDEO -vframes 1 a.png",
    is_video=True,
)
RAW_PLUGIN = "RAW"
"""The plugin of camera raw files. Pillow has no such plugin: the loader reads their preview."""

_RAW = FileFormat("a camera raw file", RAW_PLUGIN, "unsupported", _DEVELOP)
_VECTOR_HINT = "it is a drawing without pixels: render it to PNG first"
_SVG = _unsupported("an SVG drawing", _VECTOR_HINT)
_PAGES_HINT = "render a page of it to PNG first: pdftoppm -png -r 150 FILE page"

CAMERA_RAW = _RAW
"""The format of camera raw files that begin like a TIFF file; only their directory differs."""


def _compiled(*rows: tuple[bytes, FileFormat]) -> tuple[tuple[re.Pattern[bytes], FileFormat], ...]:
    return tuple((re.compile(pattern, re.DOTALL), content) for pattern, content in rows)


# The table has only the usual formats of pictures. Pillow also opens EPS, for which it runs
# Ghostscript, and scientific formats, which accept nearly any bytes. Both are left out.
_SIGNATURES = _compiled(
    (rb"\xff\xd8\xff", _picture("JPEG", "JPEG")),
    (rb"\x89PNG\r\n\x1a\n", _picture("PNG", "PNG")),
    (rb"GIF8[79]a", _picture("GIF", "GIF")),
    (rb"RIFF.{4}WEBP", _picture("WebP", "WEBP")),
    (rb"II\*\0.{4}CR|FUJIFILMCCD-RAW|IIR[OS]\x08\0|MMOR|IIU\0\x18", _RAW),
    (rb"MM\0\+", _unsupported("a big-endian BigTIFF picture")),
    (rb"II[*+]\0|MM\0\*|II\0\*|MM\*\0", _picture("TIFF", "TIFF")),
    # The pattern includes the size of the header after the first 14 bytes, because a text can begin
    # with "BM", too.
    (rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0", _picture("BMP", "BMP")),
    (rb"\0\0\x01\0[^\0]", _picture("icon", "ICO")),
    (rb"\0\0\x02\0[^\0]\0.{3}\0", _picture("cursor", "ICO")),
    (rb"icns", _picture("ICNS", "ICNS")),
    (
        rb"P[4-6](?:\s+#[^\n]*)*\s+\d+(?:\s+#[^\n]*)*\s+\d+\s"
        rb"|P[1-3](?:\s+#[^\n]*)*\s+\d+(?:\s+#[^\n]*)*\s+\d+\s+[\d#]|Pf\s",
        _picture("PNM", "PPM"),
    ),
    (rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n", _picture("JPEG 2000", "JPEG2000")),
    (rb"8BPS\0\x01", _picture("Photoshop", "PSD")),
    (rb"qoif", _picture("QOI", "QOI")),
    (rb"DDS \x7c\0\0\0", _picture("DDS", "DDS")),
    (rb"\x0a[\0\x02\x03\x05][\0\x01][\x01\x02\x04\x08]", _picture("PCX", "PCX")),
    (rb"\x01\xda[\0\x01][\x01\x02]", _picture("SGI", "SGI")),
    (
        rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n",
        _unsupported("a JPEG XL picture", "convert it to PNG first: djxl FILE a.png"),
    ),
    (rb"\x76\x2f\x31\x01", _unsupported("an OpenEXR picture")),
    (rb"#\?RADIANCE|#\?RGBE", _unsupported("a Radiance HDR picture")),
    (rb"gimp xcf", _unsupported("a GIMP project")),
    (rb".{128}DICM", _unsupported("a DICOM file")),
    (rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF", _unsupported("a Windows metafile", _VECTOR_HINT)),
    (rb"\s*%PDF-", _unsupported("a PDF document", _PAGES_HINT)),
    (rb"%!PS|\xc5\xd0\xd3\xc6", _unsupported("a PostScript drawing", _VECTOR_HINT)),
    (rb"\x1a\x45\xdf\xa3|RIFF.{4}AVI |\0\0\x01[\xb3\xba]|FLV\x01", _VIDEO),
    # The first line finds MPEG transport streams (cameras write a time before each packet), ASF and
    # WMV. The second finds QuickTime files without `ftyp`.
    (rb"G(?:.{187}G){4}|.{4}G(?:.{191}G){4}|\x30\x26\xb2\x75\x8e\x66\xcf\x11", _VIDEO),
    (rb"\0.{3}(?:moov|mdat|wide|pnot)", _VIDEO),
    (rb"RIFF.{4}WAVE|ID3[\x02-\x04]|fLaC|OggS", FileFormat("a sound or video file")),
    (rb"PK\x03\x04|PK\x05\x06", FileFormat("a ZIP archive or office document", hint="unpack it")),
    (
        rb"\x1f\x8b|7z\xbc\xaf\x27\x1c|Rar!\x1a|\xfd7zXZ|BZh[1-9]|\x28\xb5\x2f\xfd",
        FileFormat("a packed file", hint="unpack it"),
    ),
    (
        rb"version https://git-lfs\.",
        FileFormat("a Git LFS pointer, not the picture itself", hint="run `git lfs pull`"),
    ),
)

# Targa has no signature. The pattern requires a flag for a colour map, a known type and depth, and
# a size above zero.
_TARGA = re.compile(
    rb".(?:\x01[\x01\x09].{4}[\x0f\x10\x18\x20]|\0[\x02\x03\x0a\x0b].{5}).{4}"
    rb"(?!\0\0)..(?!\0\0)..[\x01\x08\x0f\x10\x18\x20][\x00-\x3f]",
    re.DOTALL,
)

_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_AVIF_BRANDS = {b"avif", b"avis"}
_AUDIO_BRANDS = {b"M4A ", b"M4B ", b"M4P "}


def _base_media(head: bytes) -> FileFormat:
    """Return the format of a file of the ISO base media family (ISO/IEC 14496-12) by its brands."""
    end = min(int.from_bytes(head[:4]), len(head))
    major = head[8:12]
    brands = {major} | {head[i : i + 4] for i in range(16, end - 3, 4)}
    if brands & _AVIF_BRANDS:
        return _picture("AVIF", "AVIF")
    # A file whose only brand is `mif1` or `msf1` is a HEIF container that does not name its codec.
    if brands & _HEIC_BRANDS or major in (b"mif1", b"msf1"):
        return _picture("HEIC", "HEIF")
    if major == b"crx ":
        return _RAW
    return FileFormat("a sound file") if major in _AUDIO_BRANDS else _VIDEO


def _text(head: bytes) -> str | None:
    """Return *head* as text; None if it is not text."""
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        # In a longer file, the head may end in the middle of a character. This is no error.
        whole = len(head) < HEAD_BYTES
        text = codecs.getincrementaldecoder(encoding)().decode(head, whole)
    except UnicodeDecodeError:
        return None
    return None if any(c < " " and c not in "\t\n\v\f\r\x1b" for c in text) else text


_WEB_ROOT = re.compile(r"<(?:!doctype\s+html|html|head|body|title|meta|script)\b", re.IGNORECASE)
_SVG_ROOT = re.compile(r"<(?:\w+:)?svg\b", re.IGNORECASE)
# The parts that can come before the root of a document: comments, processing instructions and
# declarations, each with its end (XML 1.0, section 2.8).
_PROLOG = (("<!--", "-->"), ("<?", ">"), ("<!", ">"))


def _markup(text: str) -> FileFormat:
    start = _root_start(text)
    if _WEB_ROOT.match(text, start):
        return FileFormat("a web page", hint="give the address or file of the picture itself")
    # A document type with a body may come before the root.
    if text.lstrip().startswith("<") and _SVG_ROOT.search(text):
        return _SVG
    return FileFormat("text")


def _root_start(text: str) -> int:
    """Return the position at which the root of a document, or its `<!doctype html`, begins.

    This is a loop and not one regular expression, which took exponential time: a comment can also
    be read as a declaration.
    """
    start = 0
    while True:
        start = len(text) - len(text[start:].lstrip())
        if _WEB_ROOT.match(text, start):
            return start
        end = next((end for begin, end in _PROLOG if text.startswith(begin, start)), None)
        after = text.find(end, start) if end else -1
        if end is None or after < 0:
            return start
        start = after + len(end)
