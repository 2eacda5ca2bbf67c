"""Pictures that go with the next text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from idefics_cli.chat.pictures import Staged, data_uri, stage
from idefics_cli.core.types import Attachment, ImageLimits

if TYPE_CHECKING:
    from PIL.Image import Image

_THUMBNAIL_EDGE = 512


@dataclass(frozen=True, slots=True)
class Attached:
    """A picture that goes with the next text.

    Attributes:
        staged: Its bytes, name and size.
        tokens: What it takes of the model's context; None until the model is loaded.
        thumbnail: RGB, upright, at most 512 pixels a side; None for one from an earlier turn.
    """

    staged: Staged
    tokens: int | None = None
    thumbnail: Image | None = None

    @property
    def attachment(self) -> Attachment:
        """The picture, for a request."""
        return Attachment(data_uri(self.staged))


def attach(source: str, limits: ImageLimits, *, offline: bool) -> Attached:
    """Open a picture from anywhere, and make a small one to show.

    Raises:
        ImageError: If it cannot be opened.
    """
    from idefics_cli.models.images import ImageLoader

    staged = stage(source, limits, offline=offline)
    # The bytes are here, however large the file was.
    loader = ImageLoader(replace(limits, max_bytes=max(limits.max_bytes, len(staged.data))))
    image = loader.open(Attachment(data_uri(staged)), draft_edge=_THUMBNAIL_EDGE)
    image.thumbnail((_THUMBNAIL_EDGE, _THUMBNAIL_EDGE))
    return Attached(staged, thumbnail=image)
