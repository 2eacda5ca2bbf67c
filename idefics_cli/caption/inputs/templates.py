"""Prompt templates: prompts with fields such as `{stem}`, which are filled in for each picture."""

from __future__ import annotations

import difflib
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from urllib.parse import unquote, urlsplit

from idefics_cli.caption.inputs.metadata import METADATA, metadata_values
from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.sinks.base import TEXT_EXTENSION
from idefics_cli.core.caption_file import read_caption
from idefics_cli.core.errors import PromptError, UsageError
from idefics_cli.core.sources import is_uri
from idefics_cli.core.types import ImageLimits

FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "stem": "name of the file without its extension",
        "name": "name of the file",
        "folder": "name of the folder of the file",
        "existing": "existing caption: from the list, or from the text file beside the picture",
        "width": "pixels",
        "height": "pixels",
        "date": "day on which the picture was taken; empty if it is not known",
        "description": "description in the XMP sidecar or in the picture",
        "keywords": "keywords in the XMP sidecar or in the picture",
    }
)
"""The fields that every prompt may have, besides the columns of a list."""

_SIZES = ("width", "height")
_WORD = re.compile(r"[^\W\d]\w*")
# `_TOKEN` matches doubled braces, a pair of braces without braces inside, or a single brace.
_TOKEN = re.compile(r"\{\{|\{(?P<field>[^{}\n]*)\}|\}\}|[{}]")
_DECORATED = re.compile(r"\s*(?P<name>[^\W\d]\w*)\s*(?:[!:.\[].*)?")


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a template."""

    name: str


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt as a sequence of texts and fields."""

    parts: tuple[str | Field, ...]

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields, each once."""
        return tuple(dict.fromkeys(p.name for p in self.parts if isinstance(p, Field)))

    def split(self, separator: str) -> tuple[Template, ...]:
        """Return the prompts between the *separator*s in the texts; a value may hold one."""
        parts: list[list[str | Field]] = [[]]
        for part in self.parts:
            first, *rest = [part] if isinstance(part, Field) else part.split(separator)
            parts[-1].append(first)
            parts += [[text] for text in rest]
        return tuple(Template(tuple(each)) for each in parts)

    def fill(self, values: Mapping[str, str]) -> str:
        """Return the prompt with *values* in place of the fields."""
        return "".join(values[p.name] if isinstance(p, Field) else p for p in self.parts)


@lru_cache(maxsize=256)
def parse_template(text: str, columns: tuple[str, ...] = ()) -> Template:
    """Split *text* at its fields.

    `{word}` is a field, and so are braces around a name of *columns*, which may have several
    words. `{{` is a single brace, and so is the `}}` that closes it. All other braces, such as
    those of `{"a": 1}`, stay as they are.

    Raises:
        UsageError: If a field is neither in `FIELDS` nor in *columns*.
    """
    parts: list[str | Field] = []
    end = doubled = 0
    for match in _TOKEN.finditer(text):
        parts.append(text[end : match.start()])
        end = match.end()
        token, inner = match[0], match["field"]
        if inner is not None and _is_field(inner, columns):
            parts.append(Field(inner))
        elif token == "{{":
            doubled += 1
            parts.append("{")
        elif token == "}}" and doubled:
            doubled -= 1
            parts.append("}")
        else:
            parts.append(token)
    return Template(tuple(_merged([*parts, text[end:]])))


def used_fields(prompts: Sequence[str], columns: tuple[str, ...]) -> frozenset[str]:
    """Return the fields of *prompts*, and the columns from which they may be filled in.

    Raises:
        UsageError: See `parse_template`.
    """
    names = {name for text in prompts for name in parse_template(text, columns).fields}
    return frozenset(names | {"caption"} if "existing" in names else names)


def _merged(parts: Sequence[str | Field]) -> Iterator[str | Field]:
    text = ""
    for part in parts:
        if isinstance(part, str):
            text += part
            continue
        if text:
            yield text
        text = ""
        yield part
    if text:
        yield text


def _is_field(inner: str, columns: tuple[str, ...]) -> bool:
    if inner in FIELDS or inner in columns:
        return True
    if _WORD.fullmatch(inner):
        raise _unknown(inner, columns)
    decorated = _DECORATED.fullmatch(inner)
    if decorated and (decorated["name"] in FIELDS or decorated["name"] in columns):
        raise UsageError(
            f"the prompt has `{{{inner}}}`, and a field is only a name in braces",
            hint=f"write `{{{decorated['name']}}}`; doubled braces stand for themselves",
        )
    return False


def _unknown(name: str, columns: tuple[str, ...]) -> UsageError:
    known = list(dict.fromkeys([*FIELDS, *columns]))
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    guess = f"did you mean `{{{near[0]}}}`?" if near else f"fields are {_listed(known)};"
    return UsageError(
        f"the prompt has an unknown field `{{{name}}}`",
        hint=f"{guess} `{{{{{name}}}}}` is the text itself",
    )


def _listed(names: Sequence[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def field_values(
    template: Template,
    picture: CaptionItem,
    *,
    limits: ImageLimits,
    captions_folder: str | None,
    text_extension: str = TEXT_EXTENSION,
    data: bytes | None = None,
) -> dict[str, str]:
    """Return the values of the fields of *template* for *picture*; safe in any thread.

    A column of the list has precedence over a field of `FIELDS` with the same name. Bytes of a
    file name that are not UTF-8 become U+FFFD.

    Args:
        template: The prompt.
        picture: The picture. `{width}` and `{height}` are those of the upright picture.
        limits: Limits for the pictures that are opened.
        captions_folder: Folder with the text files for `{existing}`, in the same tree of folders as
            the pictures. If it has no file for a picture, the text file beside the picture is used.
        text_extension: Extension of these files, with its dot.
        data: The bytes of the picture, if they were read already.

    Raises:
        PromptError: If the picture has no value for a field, or the prompt becomes empty.
        ImageError: If the header of the picture cannot be read.
    """
    if not template.fields:
        return {}
    columns = dict(picture.columns)
    values = {name: columns[name] for name in template.fields if name in columns}
    missing = [name for name in template.fields if name not in values]
    values = {**_values_of_file(missing, picture, limits, data), **values}
    for name in [name for name in missing if name not in values]:
        values[name] = _value(name, picture, columns, captions_folder, text_extension)
    if not template.fill(values).strip():
        raise PromptError(f"the prompt for `{picture.key}` is empty")
    return values


def _values_of_file(
    names: Sequence[str], picture: CaptionItem, limits: ImageLimits, data: bytes | None
) -> dict[str, str]:
    """Return the values of those fields among *names* for which the file is opened."""
    found: dict[str, str] = {}
    if any(name in _SIZES for name in names):
        found |= _size(picture, limits, data)
    if any(name in METADATA for name in names):
        found |= metadata_values(picture, data)
    return {name: found[name] for name in names if name in found}


def _value(
    name: str,
    picture: CaptionItem,
    columns: Mapping[str, str],
    folder: str | None,
    text_extension: str,
) -> str:
    if name == "existing":
        return _existing(picture, columns, folder, text_extension)
    if name not in FIELDS:
        raise PromptError(
            f"`{picture.key}` has no `{name}` for the prompt",
            hint="its row in the list must have that column, even if the value is empty",
        )
    path = _path(picture)
    value = {"stem": path.stem, "name": path.name, "folder": path.parent.name}[name]
    return os.fsencode(value).decode("utf-8", "replace")


def _path(picture: CaptionItem) -> PurePosixPath:
    source = picture.attachment.source
    if not is_uri(source):
        return PurePosixPath(os.path.abspath(source).replace(os.sep, "/"))
    if source == "-" or source.lower().startswith(("data:", "clipboard:")):
        raise PromptError(f"`{picture.key}` has no file name for the prompt")
    return PurePosixPath(unquote(urlsplit(source).path))


def _existing(
    picture: CaptionItem, columns: Mapping[str, str], folder: str | None, text_extension: str
) -> str:
    if "caption" in columns:
        return columns["caption"]
    for path in _sidecars(picture, folder, text_extension):
        try:
            return read_caption(Path(path)).decode("utf-8-sig").strip()
        except (FileNotFoundError, NotADirectoryError):  # NotADirectoryError: in an archive
            continue
        except UnicodeDecodeError:
            raise PromptError(f"the caption `{path}` is not UTF-8 text") from None
        except OSError as error:
            raise PromptError(f"cannot read the caption `{path}`: {error.strerror}") from error
        except ValueError:  # NUL in the name
            continue
    raise PromptError(
        f"`{picture.key}` has no existing caption for the prompt",
        hint="put one into a text file beside it; an empty file is fine",
    )


def _sidecars(picture: CaptionItem, folder: str | None, text_extension: str) -> Iterator[str]:
    places = [] if folder is None else [os.path.join(folder, picture.relative)]
    source = picture.attachment.source
    for place in [*places, *([] if is_uri(source) else [source])]:
        yield f"{os.path.splitext(place)[0]}{text_extension}"
        yield f"{place}{text_extension}"


def _size(picture: CaptionItem, limits: ImageLimits, data: bytes | None) -> dict[str, str]:
    from idefics_cli.images.media import MediaLoader

    # A download or a pipe can be read only once, and the engine reads it for the model. So its size
    # is not known here.
    if (
        data is None
        and is_uri(picture.attachment.source)
        and not picture.attachment.source.startswith("data:")
    ):
        raise PromptError(
            f"the size of `{picture.key}` is not known when its prompt is made",
            hint="`{width}` and `{height}` are for pictures in local files",
        )
    loader, attachment = MediaLoader(limits), picture.attachment
    if data is None:
        width, height = loader.size(attachment)
    else:
        width, height = loader.stream_size(io.BytesIO(data), attachment.source)
    return {"width": str(width), "height": str(height)}
