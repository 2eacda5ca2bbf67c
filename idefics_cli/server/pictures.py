"""The pictures of a request: read one after the other, each error with the field it is from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from idefics_cli.core.errors import ImageError
from idefics_cli.core.types import Attachment, GenerationRequest, ImageLimits, Part
from idefics_cli.engine.protocol import Engine, Prepared
from idefics_cli.images.media import Media, MediaLoader
from idefics_cli.server.errors import picture_error

_Open = Callable[[Attachment, int], Media]


class RequestPictures:
    """Reads the pictures of requests; any thread may use it.

    Args:
        limits: What a picture may come from, and how large it may be.
        offline: Whether to refuse web addresses.
    """

    def __init__(self, limits: ImageLimits, *, offline: bool) -> None:
        # Videos are not part of the API.
        self._loader = MediaLoader(limits, offline=offline, takes_videos=False)

    def prepare(
        self, engine: Engine, request: GenerationRequest, params: tuple[str, ...]
    ) -> Prepared:
        """Prepare *request*; the bytes of a known picture are not decoded again.

        Args:
            engine: Prepares the request.
            request: The request. It is not changed.
            params: For each picture, the field of the body with its address.

        Raises:
            ApiError: If a picture cannot be used.
            IdeficsError: As `Engine.prepare`.
        """
        opens: dict[str, _Open] = {}
        left = iter(params)

        def read(part: Part) -> Part:
            if isinstance(part, str):
                return part
            param = next(left)
            try:
                known, open_known = self._loader.read(part)
            except ImageError as error:
                raise picture_error(error, param, has_data=_has_data(part)) from error
            opens[known.digest] = _told(open_known, param, has_data=_has_data(part))
            return known

        messages = tuple(
            replace(message, parts=tuple(map(read, message.parts))) for message in request.messages
        )
        return engine.prepare(
            replace(request, messages=messages),
            open_image=lambda attachment, edge: opens[attachment.digest](attachment, edge),
        )


def _has_data(attachment: Attachment) -> bool:
    return attachment.source[:5].lower() == "data:"


def _told(open_known: _Open, param: str, *, has_data: bool) -> _Open:
    def open_image(attachment: Attachment, edge: int) -> Media:
        try:
            return open_known(attachment, edge)
        except ImageError as error:
            raise picture_error(error, param, has_data=has_data) from error

    return open_image
