"""The checks of pictures and videos before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from idefics_cli.cli.invocation import Invocation
from idefics_cli.cli.model_choice import image_limits
from idefics_cli.core.errors import ImageError
from idefics_cli.core.sources import describe_source, kind_of_source
from idefics_cli.core.types import Attachment
from idefics_cli.models.families.spec import find_family


def check_pictures(invocation: Invocation, attachments: Sequence[Attachment]) -> None:
    """Open the pictures that are files, so that a bad one is found before the model is loaded.

    A note says which page or frame of a file the model sees. Downloads, stdin and the clipboard are
    not checked, because the engine reads them later, and a second read could give another picture.
    JPEGs are decoded at an eighth of their size. That is quick, and finds most defects. Of a video,
    the header and the first frame are read.

    Raises:
        ImageError: If a picture cannot be opened or is over a limit, or if it is a video and the
            model takes none.
    """
    if not attachments:
        return
    from idefics_cli.images.loader import shown_part
    from idefics_cli.images.media import MediaLoader, first_image
    from idefics_cli.images.sources import ImageSources

    check_videos(invocation, [attachment.source for attachment in attachments])
    limits = image_limits(invocation.settings)
    loader = MediaLoader(limits)
    for attachment in attachments:
        source = attachment.source
        if _is_file(source):
            first_image(loader.open_media(attachment, draft_edge=1)).close()
            with ImageSources(limits, offline=True, stdin=None).open(source) as stream:
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
