"""Look-ahead: the pictures of waiting requests are encoded on a side stream."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Sequence
from contextlib import nullcontext

from torch import Tensor

from idefics_cli.engine.local.cancel import Flag
from idefics_cli.engine.local.memory import as_memory_limit, error_summary
from idefics_cli.engine.local.vision.encoding import PictureEncoder
from idefics_cli.engine.local.vision.side_stream import SideStream
from idefics_cli.models.families.picture import PictureTensors, PreparedPicture

_log = logging.getLogger(__name__)


class LookAhead:
    """Encodes pictures of waiting requests while other requests are answered.

    Args:
        encoder: Encodes the pictures, and keeps their features.
        side_stream: Runs the encoder; None switches look-ahead off.
    """

    def __init__(self, encoder: PictureEncoder, side_stream: SideStream | None) -> None:
        self._encoder = encoder
        self._side_stream = side_stream
        # Digests of the submitted pictures whose request has not started yet. They are not
        # submitted again.
        self._submitted: set[bytes] = set()
        # Number of calls of `encode_pieces` that have not ended.
        self._open_count = 0

    @property
    def is_on(self) -> bool:
        """Whether there is a side stream, and no work on it has failed."""
        return self._side_stream is not None

    @property
    def can_start(self) -> bool:
        """Whether the side stream is free."""
        side_stream = self._side_stream
        return side_stream is not None and not self._open_count and not side_stream.is_busy

    def start_encoding(self, waiting: Sequence[PictureTensors], cancel: Flag) -> None:
        """Start to encode some pictures of *waiting*, whose requests start soon.

        The pictures are of one shape and fit into one forward, because the first request that
        needs one of them waits for all.
        """
        missing = [
            each
            for each in waiting
            if each.features is None
            and each.picture.digest not in self._submitted
            and each.picture.digest not in self._encoder.features
        ]
        if not missing or (side_stream := self._joined_stream()) is None:
            return
        first = missing[0].picture
        alike = [each for each in missing if each.picture.tile_sizes == first.tile_sizes]
        pictures = alike[: max(1, self._encoder.max_pixels // first.pixels)]
        # Each picture is submitted only once. Otherwise, if the cache is too small for all, they
        # would push each other out of it and be encoded again and again.
        self._submitted.update(each.picture.digest for each in pictures)
        side_stream.submit_work(lambda: self._encode(pictures, cancel))

    def finish(self, pictures: Iterable[PreparedPicture]) -> None:
        """Wait for the submitted work, because the request of *pictures* starts now."""
        self._joined_stream()
        self._submitted.difference_update(picture.digest for picture in pictures)

    def encode_pieces(
        self, pictures: Sequence[PictureTensors], others: Sequence[PictureTensors] = ()
    ) -> Generator[None, None, dict[bytes, Tensor]]:
        """Encode *pictures* now, as `PictureEncoder.encode_pieces` does.

        A side stream encodes *others* while it waits, so only without one are they encoded here.

        This also runs on the side stream. torch has a pool of memory for each stream, and the peak
        of the vision encoder, some gigabytes, would otherwise stay in two of them.
        """
        pieces = self._encoder.encode_pieces(pictures, () if self.is_on else others)
        self._open_count += 1
        try:
            while True:
                side_stream = self._side_stream
                with nullcontext() if side_stream is None else side_stream.in_place():
                    try:
                        next(pieces)
                    except StopIteration as end:
                        features: dict[bytes, Tensor] = end.value
                        return features
                yield
        finally:
            self._open_count -= 1

    def record_use(self, features: Iterable[Tensor]) -> None:
        """Keep the memory of *features* until the main stream has used them."""
        if self._side_stream is not None:
            self._side_stream.record_use(features)

    def _encode(self, pictures: Sequence[PictureTensors], cancel: Flag) -> object:
        with as_memory_limit(len(pictures)):
            # The engine ignores the returned features. They are returned for the tests, whose side
            # stream checks the tensors.
            return self._encoder.encode(pictures, cancel=cancel)

    def _joined_stream(self) -> SideStream | None:
        """Wait for the submitted work; return the stream, or None after a failure."""
        try:
            if self._side_stream is not None:
                self._side_stream.join()
        # The error is only logged: if it persists, encoding on the main stream raises it again.
        except Exception as error:
            _log.warning("encoding pictures without a side stream: %s", error_summary(error))
            self._side_stream = None
        return self._side_stream
