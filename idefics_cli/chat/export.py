"""The export of a conversation as one file to share: Markdown, JSON or HTML with the pictures.

The file names of pictures are written without their folders, because these are private.
"""

from __future__ import annotations

import base64
import html
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType

from idefics_cli.chat.attachments import read_back
from idefics_cli.chat.conversation import ChatPicture, Conversation, Reply, Turn
from idefics_cli.core.errors import IdeficsError, SessionError, UsageError
from idefics_cli.core.files import check_place, write_whole
from idefics_cli.core.text import abbreviated, printable
from idefics_cli.core.types import ImageLimits
from idefics_cli.images.formats import HEAD_BYTES, identify

FORMAT = 1
"""Version of the JSON format."""

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_CODE_MARK = re.compile(r"(`+)")
# `_TAG` finds the start of an HTML tag. It skips an address such as `<https://x.org>`, and a tag
# after a backslash.
_TAG = re.compile(r"(?<!\\)<(?=[A-Za-z/!?])(?![A-Za-z][A-Za-z0-9+.-]{1,31}:)")
# Pictures in these formats are exported unchanged, because every browser shows them. Other formats
# are converted.
_MEDIA_TYPES = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "GIF": "image/gif",
    "WEBP": "image/webp",
    "AVIF": "image/avif",
    "BMP": "image/bmp",
}


def to_markdown(conversation: Conversation) -> str:
    """Return *conversation* as Markdown, with the pictures at the end as `data:` URIs.

    Questions are quoted, and Markdown in them is escaped. Answers are Markdown already; only their
    tags, such as `<loc_12>` of models for documents, are escaped, because viewers hide them.
    """
    uris = {picture.number: _data_uri(picture) for picture in conversation.pictures}
    blocks = [f"# {_literal(_one_line(conversation.title)) or 'Conversation'}"]
    if conversation.system:
        blocks += ["**System**", _quoted(conversation.system)]
    for turn in conversation.turns:
        blocks.append("## You")
        for picture in turn.pictures:
            name = _literal(_caption(picture))
            is_there = uris[picture.number] is not None
            blocks.append(f"![{name}][picture {picture.number}]" if is_there else f"*{name}*")
        if turn.text:
            blocks.append(_quoted(turn.text))
        blocks.append(f"## {_literal(_one_line(_speaker(turn, conversation)))}")
        if turn.reply is not None:
            blocks.append(_with_visible_tags(printable(turn.reply.text)))
        if remark := _remark(turn.reply):
            blocks.append(f"*({remark})*")
    links = [f"[picture {number}]: {uri}" for number, uri in uris.items() if uri is not None]
    if links:
        blocks.append("\n".join(links))
    return "\n\n".join(blocks) + "\n"


def to_json(conversation: Conversation) -> str:
    """Return *conversation* as JSON, indented.

    Texts are unchanged. `pictures` has the bytes of each picture in base64, or null if they cannot
    be found.
    """
    record = {
        "format": FORMAT,
        "name": conversation.name,
        "model": conversation.model,
        "system": conversation.system,
        "settings": dict(conversation.settings),
        "forgotten": conversation.forgotten,
        "turns": [_turn_record(turn) for turn in conversation.turns],
        "pictures": [_picture_record(picture) for picture in conversation.pictures],
    }
    text = json.dumps(record, ensure_ascii=False, indent=2)
    return text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n"


def to_html(conversation: Conversation) -> str:
    """Return *conversation* as one HTML page without scripts, for light and dark screens."""
    title = html.escape(_one_line(conversation.title) or "Conversation")
    return _PAGE.format(title=title, body="\n".join(_html_parts(conversation)))


FORMATS: Mapping[str, Callable[[Conversation], str]] = MappingProxyType(
    {"md": to_markdown, "json": to_json, "html": to_html}
)


def format_of(path: Path) -> str | None:
    """Return the format to which the suffix of *path* belongs; None if it belongs to none."""
    suffix = path.suffix.lower().removeprefix(".")
    return {"markdown": "md", "htm": "html"}.get(suffix, suffix if suffix in FORMATS else None)


def exported(conversation: Conversation, kind: str) -> str:
    """Return *conversation* in the format *kind*, a key of `FORMATS`.

    Raises:
        SessionError: If no question was asked.
    """
    if not conversation.turns:
        raise SessionError("there is nothing to export: the chat has no question")
    return FORMATS[kind](conversation)


def write_export(
    conversation: Conversation, kind: str, path: Path, *, overwrite: bool = False
) -> None:
    """Write *conversation* to *path* atomically; only the owner can read the file.

    Args:
        conversation: The conversation.
        kind: A key of `FORMATS`.
        path: A file in an existing folder.
        overwrite: Whether to replace an existing file.

    Raises:
        UsageError: If *path* exists and *overwrite* is off, is a folder, or is in no folder.
        IdeficsError: If the file cannot be written.
    """
    # `Path.exists` raises an error for a name that is too long.
    if os.path.exists(path) and not os.path.isdir(path) and not overwrite:
        raise UsageError(f"`{path}` exists already", hint="choose another name, or remove it first")
    check_place(path)
    data = exported(conversation, kind).encode("utf-8", "replace")
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a device or a pipe
            path.write_bytes(data)
        else:
            write_whole(path, data, private=True)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise IdeficsError(f"cannot write `{path}`: {reason}") from error


def _with_visible_tags(text: str) -> str:
    """Return the Markdown *text* with a backslash before each tag that is not in code."""
    lines, fence = [], ""
    for line in text.split("\n"):
        mark = _FENCE.match(line)
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        lines.append(line if mark or fence else _escape_tags(line))
    return "\n".join(lines)


def _escape_tags(line: str) -> str:
    pieces, mark = _CODE_MARK.split(line), ""
    for index, piece in enumerate(pieces):
        if not _CODE_MARK.fullmatch(piece):
            pieces[index] = piece if mark else _TAG.sub(r"\\<", piece)
        elif piece == mark:
            mark = ""
        elif not mark and piece in pieces[index + 1 :]:
            mark = piece
    return "".join(pieces)


def _turn_record(turn: Turn) -> dict[str, object]:
    reply = turn.reply
    return {
        "text": turn.text,
        "pictures": [picture.number for picture in turn.pictures],
        "reply": None if reply is None else asdict(reply),
    }


def _picture_record(picture: ChatPicture) -> dict[str, object]:
    data = _bytes(picture)
    return {
        "number": picture.number,
        "name": _name(picture),
        "width": picture.width,
        "height": picture.height,
        "dropped": picture.is_dropped,
        "sha256": picture.digest or None,
        "data": None if data is None else base64.b64encode(data).decode("ascii"),
    }


def _html_parts(conversation: Conversation) -> Iterator[str]:
    if conversation.system:
        yield _article("system", "System", _text(conversation.system))
    for turn in conversation.turns:
        inside = "".join(_figure(picture) for picture in turn.pictures)
        yield _article("user", "You", inside + _text(turn.text))
        remark = _remark(turn.reply)
        said = "" if turn.reply is None else _text(turn.reply.text)
        if remark:
            said += f'<p class="remark">({remark})</p>'
        yield _article("model", html.escape(_one_line(_speaker(turn, conversation))), said)


def _article(kind: str, heading: str, inside: str) -> str:
    return f'<article class="{kind}">\n<h2>{heading}</h2>\n{inside}\n</article>'


def _text(text: str) -> str:
    return f'<div class="text" dir="auto">{html.escape(printable(text))}</div>' if text else ""


def _figure(picture: ChatPicture) -> str:
    caption = html.escape(_caption(picture))
    uri = _data_uri(picture)
    if uri is None:
        return f'<p class="remark">{caption}</p>'
    image = f'<img src="{uri}" alt="{caption}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _caption(picture: ChatPicture) -> str:
    remarks = []
    if picture.is_dropped:
        remarks.append("dropped")
    if _bytes(picture) is None:
        remarks.append("missing")
    tail = f" ({', '.join(remarks)})" if remarks else ""
    return f"Picture {picture.number}: {_name(picture)}{tail}"


def _name(picture: ChatPicture) -> str:
    source = picture.source
    is_address = "://" in source[:12]
    return abbreviated(source if is_address else Path(source).name or source)


def _speaker(turn: Turn, conversation: Conversation) -> str:
    return (turn.reply.model if turn.reply else "") or conversation.model


def _remark(reply: Reply | None) -> str:
    if reply is None:
        return "no answer"
    return {"cancelled": "interrupted", "length": "cut: the limit of tokens"}.get(reply.finish, "")


def _bytes(picture: ChatPicture) -> bytes | None:
    try:
        return read_back(picture.attachment)
    except OSError:
        return None


def _data_uri(picture: ChatPicture) -> str | None:
    data = _bytes(picture)
    if data is None:
        return None
    plugin = identify(data[:HEAD_BYTES]).plugin
    kind = _MEDIA_TYPES.get(plugin or "")
    if kind is None:
        data, kind = _as_png(data, picture.source), "image/png"
    if data is None:
        return None
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _as_png(data: bytes, source: str) -> bytes | None:
    from idefics_cli.images.media import MediaLoader, first_image

    buffer = io.BytesIO()
    try:
        # The picture was within the limits when it was attached, so they do not apply again.
        limits = ImageLimits(max_pixels=2**40)
        loader = MediaLoader(limits, offline=True)
        first_image(loader.open_media_stream(io.BytesIO(data), source)).save(buffer, "PNG")
    except IdeficsError:
        return None
    return buffer.getvalue()


def _quoted(text: str) -> str:
    # Two spaces at the end of a line are a line break in Markdown.
    lines = _literal(text).splitlines()
    return "  \n".join(f"> {line}".rstrip() for line in lines)


def _literal(text: str) -> str:
    """Return *text* with Markdown escaped."""
    return re.sub(r"([\\`*_\[\]<&#])", r"\\\1", printable(text))


def _one_line(text: str) -> str:
    return " ".join(printable(text).split())


# The page has no scripts, and its policy forbids every request to a server: the pictures are
# private.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="generator" content="idefics">
<title>{title}</title>
<style>
:root {{
  color-scheme: light dark;
  --page: #fff; --ink: #1a1a1a; --faint: #595959; --line: #d4d4d4; --user: #eef3fb;
}}
@media (prefers-color-scheme: dark) {{
  :root {{ --page: #16181c; --ink: #e8e8e8; --faint: #a8a8a8; --line: #3c4048; --user: #222b3a; }}
}}
body {{
  margin: 0 auto; max-width: 46rem; padding: 1.5rem 1rem 4rem;
  background: var(--page); color: var(--ink); font: 1rem/1.55 system-ui, sans-serif;
}}
h1 {{ font-size: 1.4rem; overflow-wrap: anywhere; }}
h2 {{ margin: 0 0 .35rem; font-size: .85rem; color: var(--faint); }}
article {{
  margin: 1rem 0; padding: .8rem 1rem; border: 1px solid var(--line); border-radius: .6rem;
}}
.user {{ background: var(--user); }}
.text {{ white-space: pre-wrap; overflow-wrap: anywhere; }}
.remark, figcaption {{
  margin: .35rem 0 0; font-size: .85rem; color: var(--faint); overflow-wrap: anywhere;
}}
figure {{ display: inline-block; vertical-align: top; max-width: 100%; margin: 0 .8rem .6rem 0; }}
img {{ display: block; max-width: 100%; max-height: 20rem; border-radius: .4rem; }}
@media print {{ article {{ break-inside: avoid; }} }}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
</body>
</html>
"""
