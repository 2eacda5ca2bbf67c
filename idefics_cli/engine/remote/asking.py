"""One request to a server, asked again until it is answered or given up."""

from __future__ import annotations

import time
from collections.abc import Mapping
from threading import Event, Lock

from idefics_cli.core.errors import NoServerError, ServerError
from idefics_cli.core.types import Completion, TokenChunk
from idefics_cli.engine.protocol import Listener, Outcome
from idefics_cli.engine.remote.connection import (
    BrokenError,
    BrokenOffError,
    ConnectError,
    HttpExchange,
)
from idefics_cli.engine.remote.faults import ServerFault, fault_of
from idefics_cli.engine.remote.patience import ServerHealth
from idefics_cli.engine.remote.shrinking import SMALL_EDGE, with_smaller_pictures
from idefics_cli.engine.remote.wire import ReplyReader

START_HINT = "is it running? `idefics serve` or another server must listen there"
"""The fix for a server that cannot be reached."""


class RemoteRequest:
    """A request, and its answer; `run` blocks, and `cancel` may be called in any thread.

    This is a `Handle`.

    Args:
        url: The server.
        path: Where the request goes, below *url*.
        key: The key of the server.
        body: The request as JSON.
        health: What is known about the server.
        listen: Receives the events.
        streams: Whether the events hold the text while it arrives.
        is_patient: Whether to wait for a server that cannot be reached.
        has_pictures: Whether the request has pictures.
    """

    def __init__(
        self,
        url: str,
        path: str,
        key: str,
        body: Mapping[str, object],
        *,
        health: ServerHealth,
        listen: Listener,
        streams: bool,
        is_patient: bool,
        has_pictures: bool,
    ) -> None:
        self._url = url
        self._path = path
        self._key = key
        self._body = body
        self._health = health
        self._listen = listen
        self._streams = streams
        self._is_patient = is_patient
        self._has_pictures = has_pictures
        self._cancelled = Event()
        self._lock = Lock()
        self._exchange: HttpExchange | None = None
        self._has_begun = False
        self._is_shrunk = False
        self._told = 0

    @property
    def place(self) -> int | None:
        """0 until the server answers: how many requests are before this one is unknown."""
        return None if self._has_begun else 0

    def cancel(self) -> None:
        """Close the connection, by which the server sees that its client has left."""
        self._cancelled.set()
        with self._lock:
            if self._exchange is not None:
                self._exchange.break_off()

    def run(self) -> None:
        """Ask until there is an outcome, and give it to the listener."""
        try:
            outcome = self._outcome()
        except Exception as error:  # a worker's edge
            outcome = error
        try:
            self._listen(outcome)
        except Exception:  # the listener gave up the request
            self.cancel()

    def _outcome(self) -> Outcome:
        tries, reader = 0, ReplyReader()
        while self._health.wait_for_turn(self._cancelled):
            reader = ReplyReader()
            fault = self._try(reader)
            if isinstance(fault, Completion):
                return fault
            if fault.is_too_large and self._shrink_pictures():
                continue
            if not fault.is_retried or self._told:
                raise fault.error
            if fault.is_unavailable and not self._is_patient and fault.wait_seconds is None:
                raise fault.error
            # A request is not given up because the server is away: `note_failure` raises if all
            # are to be given up.
            tries += 1
            seconds = self._health.note_failure(fault, min(tries, self._health.patience.tries))
            limits_tries = not (self._is_patient and fault.is_unavailable)
            if limits_tries and tries >= self._health.patience.tries:
                raise fault.error
            self._cancelled.wait(seconds)
        return _completion(reader, cancelled=True)

    def _shrink_pictures(self) -> bool:
        """Make the pictures smaller, once; return whether one became smaller."""
        if self._is_shrunk or not self._has_pictures:
            return False
        self._is_shrunk = True
        smaller = with_smaller_pictures(self._body)
        if smaller is None:
            return False
        self._body = smaller
        self._health.note_change(
            f"{self._url} refuses large requests, so their pictures are sent again with at most "
            f"{SMALL_EDGE} pixels a side"
        )
        return True

    def _try(self, reader: ReplyReader) -> Completion | ServerFault:
        """Ask once; return the answer, or what went wrong."""
        silence = self._health.patience.silence_seconds
        started = time.perf_counter()
        exchange = HttpExchange(self._url + self._path, key=self._key, silence_seconds=silence)
        with exchange:
            with self._lock:
                self._exchange = exchange
            try:
                if self._cancelled.is_set():
                    raise BrokenOffError
                exchange.send(self._body)
                if exchange.status != 200:
                    return self._fault(exchange.status, exchange.headers, exchange.read())
                first = self._read(exchange, reader)
            except BrokenOffError:
                return _completion(reader, cancelled=True)
            except ConnectError as error:
                lost = NoServerError(f"cannot reach {self._url}: {error}", hint=START_HINT)
                return ServerFault(lost, True, True)
            except BrokenError as error:
                return ServerFault(ServerError(f"{self._url} did not answer: {error}"), True)
            finally:
                with self._lock:
                    self._exchange = None
        if reader.error is not None:
            return self._fault(0, {}, reader.error)
        ended = time.perf_counter()
        return self._checked(reader, (first or ended) - started, ended - (first or ended))

    def _read(self, exchange: HttpExchange, reader: ReplyReader) -> float | None:
        """Read the answer, and return when its first text came."""
        if "event-stream" not in exchange.headers.get("content-type", ""):
            self._tell(reader.read(exchange.read()), reader)
            return None
        first = None
        for line in exchange.lines():
            text = reader.feed(line)
            if text and first is None:
                first = time.perf_counter()
                self._health.note_answer()
            self._has_begun = True
            self._tell(text, reader)
            if reader.error is not None or reader.is_done:
                break
        return first

    def _tell(self, text: str, reader: ReplyReader) -> None:
        if text and self._streams:
            self._told += len(text)
            self._listen(TokenChunk(text, reader.pieces, prompt_tokens=reader.prompt_tokens))

    def _fault(self, status: int, headers: Mapping[str, str], body: bytes) -> ServerFault:
        fault = fault_of(
            self._url,
            status,
            headers,
            body,
            model=str(self._body.get("model", "")),
            has_pictures=self._has_pictures,
        )
        if not fault.is_retried:
            self._health.note_answer()
        return fault

    def _checked(
        self, reader: ReplyReader, prefill: float, decode: float
    ) -> Completion | ServerFault:
        if reader.known_finish is not None:
            self._health.note_answer()
            return _completion(reader, prefill_seconds=prefill, decode_seconds=decode)
        if reader.finish in ("content_filter", "tool_calls", "function_call"):
            return ServerFault(ServerError(f"{self._url} gave no answer: {reader.finish}"))
        return ServerFault(ServerError(f"{self._url} broke its answer off"), True)


def _completion(
    reader: ReplyReader,
    *,
    cancelled: bool = False,
    prefill_seconds: float = 0.0,
    decode_seconds: float = 0.0,
) -> Completion:
    return Completion(
        reader.text,
        reader.prompt_tokens,
        reader.reused_tokens,
        reader.new_tokens,
        "cancelled" if cancelled else reader.known_finish or "cancelled",
        prefill_seconds,
        decode_seconds,
    )
