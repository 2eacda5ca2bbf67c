"""Pictures and videos of a question: read and checked before the model is loaded."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from idefics_cli.cli.invocation import Invocation
from idefics_cli.cli.model_choice import image_limits, with_base_model
from idefics_cli.core.errors import ImageError
from idefics_cli.core.files import read_limited
from idefics_cli.core.sources import describe_source, kind_of_source
from idefics_cli.core.types import Attachment
from idefics_cli.models.families.spec import find_family

if TYPE_CHECKING:
    from idefics_cli.engine.protocol import OpenImage
    from idefics_cli.images.media import Media, MediaLoader
    from idefics_cli.images.sources import ImageSources


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
    from idefics_cli.images.media import MediaLoader, first_image, identify_video
    from idefics_cli.images.sources import ImageSources

    check_videos(invocation, [attachment.source for attachment in attachments])
    are_files = all(is_file(attachment.source) for attachment in attachments)
    limits, offline = image_limits(invocation.settings), invocation.settings.offline
    sees_videos = are_files or takes_videos(invocation)
    loader = MediaLoader(limits, offline=offline, takes_videos=sees_videos)
    sources = ImageSources(limits, offline=offline, stdin=invocation.services.stdin)
    opener = _ReadPictures(loader, {})
    for attachment in attachments:
        source = attachment.source
        if not is_file(source) and source not in opener.read:
            _read(invocation, sources, source, opener.read)
        data = opener.read.get(source)
        if data is not None and not sees_videos and identify_video(io.BytesIO(data)):
            raise _no_videos(invocation, source)
        first_image(opener(attachment, 1)).close()
        _tell_part(invocation, sources, source, data)
    return None if are_files else opener


@dataclass(frozen=True, slots=True)
class _ReadPictures:
    """Opens pictures, some of which were read before: a `FileOpener`.

    Attributes:
        loader: Opens the others.
        read: The bytes of those that were read, by their source.
    """

    loader: MediaLoader
    read: dict[str, bytes]

    def __call__(self, attachment: Attachment, draft_edge: int) -> Media:
        """Open the picture or video."""
        if (data := self.read.get(attachment.source)) is None:
            return self.loader.open_media(attachment, draft_edge=draft_edge)
        stream = io.BytesIO(data)
        return self.loader.open_media_stream(stream, attachment.source, draft_edge=draft_edge)

    def read_file(self, attachment: Attachment) -> bytes:
        """Return the bytes of its file."""
        return self.read.get(attachment.source) or self.loader.read_bytes(attachment)


def _read(
    invocation: Invocation, sources: ImageSources, source: str, read: dict[str, bytes]
) -> None:
    """Add the bytes of *source* to *read*, but not of a large file on the clipboard."""
    most = invocation.settings.max_bytes
    with (
        invocation.console.status(f"reading {describe_source(source)}"),
        sources.open(source) as stream,
    ):
        data = read_limited(stream, most + 1)
    if len(data) <= most:
        read[source] = data


def _tell_part(
    invocation: Invocation, sources: ImageSources, source: str, data: bytes | None
) -> None:
    """Show a note if the model sees a page or frame of a file; *data* is its bytes, if known."""
    from idefics_cli.images.loader import shown_part

    with sources.open(source) if data is None else io.BytesIO(data) as stream:
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
    for source in filter(is_file, sources):
        with opener.open(source) as stream:
            is_video = identify_video(stream) is not None
        if is_video and not takes_videos(invocation):
            raise _no_videos(invocation, source)


def _no_videos(invocation: Invocation, source: str) -> ImageError:
    return ImageError(
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
    settings = with_base_model(invocation).settings
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


def is_file(source: str) -> bool:
    """Return whether the bytes of *source* are in a local file or in *source* itself."""
    return kind_of_source(source) in ("file", "data")
