"""The pictures in object stores and on other machines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from idefics_cli.caption.inputs.tars import expanded
from idefics_cli.caption.item import CaptionItem
from idefics_cli.core.errors import IdeficsError, ImageError, UsageError
from idefics_cli.core.sources import describe_source, is_remote, without_password
from idefics_cli.core.types import Attachment, ImageLimits
from idefics_cli.images.folders import (
    TakesVideos,
    has_picture_name,
    has_video_name,
    has_wildcard,
    sort_key,
)
from idefics_cli.images.tars import SUFFIX


def remote_pictures(
    argument: str,
    problems: list[IdeficsError],
    *,
    recursive: bool,
    takes_videos: TakesVideos,
) -> Sequence[CaptionItem]:
    """Return the pictures that an address names, sorted: one, those of a folder, or matches.

    Only names are looked at. An address with the extension of a picture is taken without asking.

    Args:
        argument: An address, perhaps with wildcards or a range as `{000..099}`.
        problems: Receives what cannot be listed.
        recursive: Whether to list the folders of a folder, too.
        takes_videos: See `TakesVideos`.
    """
    found: dict[str, CaptionItem] = {}
    for name in expanded(argument):
        count = len(found)
        try:
            for each in _items(name, recursive=recursive):
                path = each.attachment.source
                if has_picture_name(path) or (has_video_name(path) and takes_videos()):
                    found[each.key] = each
        except ImageError as error:
            problems.append(error)
            continue
        if len(found) == count:
            problems.append(_none(name, recursive=recursive))
    return sorted(found.values(), key=lambda each: sort_key(each.key))


def refuse_remote(arguments: Sequence[str]) -> None:
    """Raise a UsageError if one of *arguments* is an address, for a run without a network."""
    found = next(filter(is_remote, arguments), None)
    if found is not None:
        raise UsageError(
            f"cannot list `{describe_source(found)}`: --offline is set",
            hint="run without --offline, or copy the pictures and name the copy",
        )


def _items(url: str, *, recursive: bool) -> Iterator[CaptionItem]:
    if url.lower().endswith(SUFFIX):
        raise ImageError(
            f"`{describe_source(url)}` is an archive in another place",
            kind="unsupported",
            hint="copy it to this machine, and name the copy",
        )
    if has_picture_name(url) and not has_wildcard(url):
        name = url.rpartition("/")[2]
        yield CaptionItem(without_password(url), Attachment(url), name)
        return
    from idefics_cli.images.remote import list_remote

    for file in list_remote(url, ImageLimits(), recursive=recursive):
        if not file.relative.startswith(".") and "/." not in file.relative:
            yield CaptionItem(
                without_password(file.url),
                Attachment(file.url),
                file.relative,
                version=file.stamp,
            )


def _none(name: str, *, recursive: bool) -> ImageError:
    hint = None if recursive or has_wildcard(name) else "`-r` also looks into its sub-folders"
    return ImageError(f"no pictures in `{describe_source(name)}`", kind="missing", hint=hint)
