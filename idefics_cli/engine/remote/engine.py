"""The engine that asks a server; it has the protocol of all engines, and needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from threading import Event, Lock
from typing import TypeVar

from idefics_cli.core.closing import Closing
from idefics_cli.core.errors import NoServerError, PromptError, ServerError
from idefics_cli.core.servers import ServerSpec
from idefics_cli.core.threads import in_background
from idefics_cli.core.types import Completion, GenerationRequest, LoadSpec, Progress, TokenChunk
from idefics_cli.engine.protocol import (
    Handle,
    Listener,
    Measure,
    OpenImage,
    Outcome,
    Prepared,
    Session,
    Urgency,
    last_chunk,
)
from idefics_cli.engine.remote.asking import RemoteRequest
from idefics_cli.engine.remote.patience import Patience, ServerHealth
from idefics_cli.engine.remote.session import RemoteSession
from idefics_cli.engine.remote.uploads import Uploads
from idefics_cli.engine.remote.wire import request_body, request_path
from idefics_cli.models.hub.registry import base_model_error

_T = TypeVar("_T")
_POLL_SECONDS = 0.05


class RemoteEngine(Closing):
    """Asks a server with OpenAI's API; see `protocol.Engine`. Each request has its own thread.

    Args:
        spec: The model, with its server.
        patience: How long to wait, and how often to try.
        progress: Called with notes about waits and changed requests, in the thread that waits for
            an answer or an outcome of a session.
    """

    def __init__(
        self,
        spec: LoadSpec,
        *,
        patience: Patience | None = None,
        progress: Progress | None = None,
    ) -> None:
        if spec.server is None:
            raise ValueError("the spec has no server")
        self.spec = spec
        self.revision = spec.server.revision
        self._progress = progress
        self._server: ServerSpec = spec.server
        self._health = ServerHealth(patience or Patience())
        self._uploads = Uploads(spec.limits, offline=spec.offline, sends_files=spec.server.is_ours)
        self._lock = Lock()
        self._open: set[RemoteRequest] = set()
        self._is_closed = False

    @property
    def context_tokens(self) -> int:
        """Number of tokens that the model takes, prompt and reply together; 0 if unknown."""
        return self._server.context_tokens or 0

    def prepare(
        self, request: GenerationRequest, *, open_image: OpenImage | None = None
    ) -> Prepared:
        """Open and check the images of *request*; see `Engine.prepare`."""
        if request.mode == "chat" and not self.spec.chats:
            raise base_model_error(self.spec.name or self.spec.repo)
        if any(each.detail.longest_edge is not None for each in request.attachments):
            raise PromptError(
                "a server chooses the size of its pictures", hint="leave `longest_edge` out"
            )
        pictures = (self._uploads.prepare(each, open_image) for each in request.attachments)
        return Prepared(request, tuple(pictures))

    def measure(self, prepared: Prepared) -> Measure | None:
        """Return None: only the server can count tokens."""
        return None

    def submit(
        self,
        prepared: Prepared,
        listen: Listener,
        *,
        urgency: Urgency = "interactive",
        streams: bool = False,
    ) -> Handle:
        """Send a request in a thread of its own; see `Engine.submit`."""
        self._check_open()
        request, server = prepared.request, self._server
        pairs = zip(request.attachments, prepared.pictures, strict=True)
        pictures = [self._uploads.find(attachment, picture).uri for attachment, picture in pairs]

        def tell(event: TokenChunk | Outcome) -> None:
            if not isinstance(event, TokenChunk):
                with self._lock:
                    self._open.discard(asked)
            # In a batch, each request has its own ServerError, and a NoServerError ends them all.
            if isinstance(event, NoServerError if urgency == "batch" else ServerError):
                event.add_hint(server.origin_hint)
            listen(event)

        asked = RemoteRequest(
            server.url,
            request_path(request),
            server.key,
            request_body(server, self.spec.repo, request, pictures, urgency),
            health=self._health,
            listen=tell,
            streams=streams,
            is_patient=urgency == "batch",
            has_pictures=bool(pictures),
        )
        with self._lock:
            self._open.add(asked)
        in_background(asked.run, name="request to a server")
        return asked

    def complete(
        self, batch: Sequence[Prepared], *, cancel: Event | None = None
    ) -> list[Completion]:
        """Answer *batch* in order; see `Engine.complete`."""
        outcomes: SimpleQueue[tuple[int, Outcome]] = SimpleQueue()
        handles: list[Handle] = []
        found: dict[int, Completion] = {}

        def listener(index: int) -> Listener:
            return lambda event: (
                None if isinstance(event, TokenChunk) else outcomes.put((index, event))
            )

        try:
            handles += (
                self.submit(prepared, listener(index)) for index, prepared in enumerate(batch)
            )
            while len(found) < len(batch):
                index, outcome = _get(outcomes, cancel, handles)
                if isinstance(outcome, Exception):
                    raise outcome
                found[index] = outcome
            self._tell_changes()
        finally:
            for handle in handles:
                handle.cancel()
        return [found[index] for index in range(len(batch))]

    def serve(self, *, slots: int, cancel: Event | None = None) -> Session:
        """Open a session of at most *slots* requests at a time; see `Engine.serve`."""
        self._check_open()
        submit = partial(self.submit, urgency="batch")
        return RemoteSession(
            slots, cancel=cancel, submit=submit, health=self._health, tell=self._tell
        )

    def stream(self, prepared: Prepared, *, cancel: Event | None = None) -> Iterator[TokenChunk]:
        """Yield one answer piece by piece; see `Engine.stream`."""
        events: SimpleQueue[TokenChunk | Outcome] = SimpleQueue()
        handle = self.submit(prepared, events.put, streams=True)
        try:
            while isinstance(event := _get(events, cancel, [handle]), TokenChunk):
                yield event
            if isinstance(event, Exception):
                raise event
            self._tell_changes()
            yield last_chunk(event)
        finally:
            handle.cancel()

    def close(self) -> None:
        """End all requests; idempotent."""
        with self._lock:
            self._is_closed = True
            left = list(self._open)
        for request in left:
            request.cancel()

    def _tell(self, note: str) -> None:
        if self._progress is not None:
            self._progress(note, None)

    def _tell_changes(self) -> None:
        for note in self._health.take_changes():
            self._tell(note)

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError("the engine is closed")


def _get(events: SimpleQueue[_T], cancel: Event | None, handles: Sequence[Handle]) -> _T:
    """Return the next of *events*; cancel *handles* as soon as *cancel* is set."""
    while True:
        if cancel is not None and cancel.is_set():
            for handle in handles:
                handle.cancel()
            return events.get()  # a cancelled request ends at once
        try:
            return events.get(timeout=_POLL_SECONDS)
        except Empty:
            continue
