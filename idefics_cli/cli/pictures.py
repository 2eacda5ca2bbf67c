"""Pictures and videos of a question: read and checked before the model is loaded."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from idefics_cli.cli.invocation import Invocation
from idefics_cli.cli.model_choice import image_limits
from idefics_cli.core.errors import ImageError
from idefics_cli.core.sources import describe_source, kind_of_source
from idefics_cli.core.types import Attachment
from idefics_cli.models.families.spec import find_family

if TYPE_CHECKING:
    from idefics_cli.engine.protocol import OpenImage
    from idefics_cli.images.media import Media, MediaLoader


def read_pictures(invocation: Invocation, attachments: Sequence[Attachment]) -> OpenImage | None:
    """Open the pictures, so that a bad one is found before the model is loaded.

    A note says which page or frame of a file the model sees. JPEGs are decoded at an eighth of
    their size. That is quick, and finds most defects. Of a video, the header and the first frame
    are read. What is no file is read once, because a second read could give another picture.

    Returns:
        What opens the pictures for the engine; None if the engine can open them itself.

    Raises:
        ImageError: If a picture cannot be opened or is over a limit, or if it is a video and the
            model takes none.
    """
    if not attachments:
        return None
    from idefics_cli.chat.attachments import FileData
    from idefics_cli.images.media import first_image

    check_videos(invocation, [attachment.source for attachment in attachments])
    are_files = all(_is_file(attachment.source) for attachment in attachments)
    loader = _make_loader(invocation, takes_videos=are_files or takes_videos(invocation))
    read: dict[str, bytes] = {}

    def open_image(attachment: Attachment, draft_edge: int) -> Media:
        if (data := read.get(attachment.source)) is None:
            return loader.open_media(attachment, draft_edge=draft_edge)
        stream = io.BytesIO(data)
        return loader.open_media_stream(stream, attachment.source, draft_edge=draft_edge)

    for attachment in attachments:
        source = attachment.source
        if not _is_file(source) and source not in read:
            with invocation.console.status(f"reading {describe_source(source)}"):
                read[source] = loader.read_bytes(attachment)
        first_image(open_image(attachment, 1)).close()
        _tell_part(invocation, source, read.get(source))
    if are_files:
        return None
    return FileData(open_image, lambda each: read.get(each.source) or loader.read_bytes(each))


def _make_loader(invocation: Invocation, *, takes_videos: bool) -> MediaLoader:
    from idefics_cli.images.media import MediaLoader

    return MediaLoader(
        image_limits(invocation.settings),
        offline=invocation.settings.offline,
        stdin=invocation.services.stdin,
        takes_videos=takes_videos,
    )


def _tell_part(invocation: Invocation, source: str, data: bytes | None) -> None:
    """Show a note if the model sees a page or frame of a file; *data* is its bytes, if known."""
    from idefics_cli.images.loader import shown_part
    from idefics_cli.images.sources import ImageSources

    opener = ImageSources(image_limits(invocation.settings), offline=True, stdin=None)
    with opener.open(source) if data is None else io.BytesIO(data) as stream:
        if part := shown_part(stream):
            invocation.console.note(f"of `{describe_source(source)}` the model sees {part}")


def check_videos(invocation: Invocation, sources: Sequence[str]) -> None:
    """Check that there is no video among the files of *sources* if the model takes none.

    Raises:
        ImageError: If there is one, or if a file cannot be read.
        ModelError: If there is a video and the model is unknown.
    """
    from idefics_cli.images.media import identify_video
    from idefics_cli.images.sources import ImageSources

    opener = ImageSources(image_limits(invocation.settings), offline=True, stdin=None)
    for source in filter(_is_file, sources):
        with opener.open(source) as stream:
            is_video = identify_video(stream) is not None
        if is_video and not takes_videos(invocation):
            raise ImageError(
                f"cannot read `{describe_source(source)}`: it is a video, and"
                f" `{invocation.settings.model}` takes pictures, not videos",
                kind="unsupported",
                hint=f"models for videos are {_models_for_videos()}; or save a frame of it as a"
                " picture: ffmpeg -i VIDEO -vframes 1 a.png",
            )


def takes_videos(invocation: Invocation) -> bool:
    """Return whether the chosen model takes videos.

    Raises:
        ModelError: If the model is unknown; see `find_facts`.
    """
    settings = invocation.settings
    if settings.server is not None:
        return False
    facts = invocation.services.find_facts(
        settings.model, revision=settings.revision, offline=settings.offline
    )
    return find_family(facts.family).takes_videos


def _models_for_videos() -> str:
    from idefics_cli.models.hub.registry import MODELS

    names = [spec.name for spec in MODELS.values() if find_family(spec.family).takes_videos]
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _is_file(source: str) -> bool:
    return kind_of_source(source) in ("file", "data")
