"""The pictures of a request: read one after the other, each error with the field it is from."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from threading import Lock

from idefics_cli.core.errors import ImageError
from idefics_cli.core.types import Attachment, GenerationRequest, ImageLimits, Part
from idefics_cli.engine.protocol import Engine, Prepared
from idefics_cli.images.media import Media, MediaLoader
from idefics_cli.server.errors import picture_error

_Open = Callable[[Attachment, int], Media]
# Number of `data:` addresses that are remembered; each takes 300 bytes.
_MOST_KNOWN = 10_000


class RequestPictures:
    """Reads the pictures of requests; any thread may use it.

    Args:
        limits: What a picture may come from, and how large it may be.
        offline: Whether to refuse web addresses.
    """

    def __init__(self, limits: ImageLimits, *, offline: bool) -> None:
        # Videos are not part of the API.
        self._loader = MediaLoader(limits, offline=offline, takes_videos=False)
        # The digests of files by the digests of their `data:` addresses. A chat sends its pictures
        # again with each question, and to decode base64 takes three times as long as a digest.
        self._known: OrderedDict[bytes, str] = OrderedDict()
        self._lock = Lock()

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
                known, open_known = self._read(part)
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

    def _read(self, attachment: Attachment) -> tuple[Attachment, _Open]:
        """Return *attachment* with the digest of its file, and what opens it."""
        if not _has_data(attachment):
            return self._loader.read(attachment)
        address = attachment.source.encode("utf-8", "surrogatepass")
        key = hashlib.sha256(address).digest()
        with self._lock:
            if (digest := self._known.get(key)) is not None:
                self._known.move_to_end(key)
        if digest is not None:
            # This is called if the engine does not have the picture any more.
            return (
                replace(attachment, digest=digest),
                lambda each, edge: self._loader.open_media(each, draft_edge=edge),
            )
        known, open_known = self._loader.read(attachment)
        if known.digest:
            with self._lock:
                self._known[key] = known.digest
                if len(self._known) > _MOST_KNOWN:
                    self._known.popitem(last=False)
        return known, open_known


def _has_data(attachment: Attachment) -> bool:
    return attachment.source[:5].lower() == "data:"


def _told(open_known: _Open, param: str, *, has_data: bool) -> _Open:
    def open_image(attachment: Attachment, edge: int) -> Media:
        try:
            return open_known(attachment, edge)
        except ImageError as error:
            raise picture_error(error, param, has_data=has_data) from error

    return open_image
