"""What all endpoints share: the engine, the places, the limits and the end of the server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from idefics_cli.core.types import LoadSpec, Sampling
from idefics_cli.engine.protocol import EngineFactory
from idefics_cli.server.admission import RequestAdmission
from idefics_cli.server.bodies import BodyLimits
from idefics_cli.server.errors import ApiError, shutting_down
from idefics_cli.server.generation import Generation
from idefics_cli.server.guards import Access
from idefics_cli.server.metrics import Metrics
from idefics_cli.server.pictures import RequestPictures
from idefics_cli.server.reading import BodyReader
from idefics_cli.server.warm import WarmEngine

# Number of threads that read bodies and pictures. At most this many downloads run at a time.
_READERS = 4


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What a server does.

    Attributes:
        spec: The model. Its limits say what pictures may come from.
        access: Who may ask.
        names: The names by which requests may call the model; answers have the first.
        sampling: How tokens are chosen if a request does not say it.
        system: Instruction for conversations that have none.
        most_images: Largest number of pictures of a request.
        slots: Number of requests that the engine answers at a time.
        queue: Number of further requests that may wait.
        body: The limits of bodies.
        most_body_bytes: Largest number of bytes of all bodies at a time.
        keep_alive_seconds: How long an unused model stays loaded; None for ever.
        role_seconds: After so long without text, a stream begins with an event without text.
        silence_seconds: After so long without text, a stream gets an event without text.
        logs_ids: Whether the line of a request in the log ends with its id.
    """

    spec: LoadSpec
    access: Access = field(default_factory=Access)
    names: tuple[str, ...] = ("model",)
    sampling: Sampling = field(default_factory=Sampling)
    system: str | None = None
    most_images: int = 16
    slots: int = 16
    queue: int = 64
    body: BodyLimits = field(default_factory=BodyLimits)
    most_body_bytes: int = 256 * 1024 * 1024
    keep_alive_seconds: float | None = None
    role_seconds: float = 10.0
    silence_seconds: float = 15.0
    logs_ids: bool = True


class Call:
    """A request for replies, from its admission to the end of its answer."""

    def __init__(self) -> None:
        self.generation: Generation | None = None
        self.stop: asyncio.Future[ApiError] = asyncio.get_running_loop().create_future()
        """Gets the error that ends the request, when the server ends."""

    @property
    def is_waiting(self) -> bool:
        """Whether the engine has not begun with it."""
        return self.generation is None or self.generation.is_waiting

    def end(self, error: ApiError) -> None:
        """End the request with *error*."""
        if not self.stop.done():
            self.stop.set_result(error)


class Service:
    """The parts of a server. The event loop owns it.

    Args:
        options: What it does.
        factory: Loads the model.
        tell: Called with lines about the model.
    """

    def __init__(
        self, options: ServerOptions, factory: EngineFactory, *, tell: Callable[[str], None]
    ) -> None:
        self.options = options
        self.metrics = metrics = Metrics()
        self.admission = RequestAdmission(
            slots=options.slots,
            queue=options.queue,
            most_bytes=options.most_body_bytes,
            reject=lambda reason: metrics.rejected.labels(reason).inc(),
        )
        self.engine = WarmEngine(factory, keep_alive_seconds=options.keep_alive_seconds, tell=tell)
        self.reader = BodyReader(
            options.sampling, system=options.system, most_images=options.most_images
        )
        self.pictures = RequestPictures(options.spec.limits, offline=options.spec.offline)
        self.pool = ThreadPoolExecutor(_READERS, thread_name_prefix="request")
        self.calls: set[Call] = set()
        self.is_draining = False
        self._observe()

    def drain(self) -> None:
        """Take no new requests, and refuse those that the engine has not begun with."""
        self.is_draining = True
        for call in list(self.calls):
            if call.is_waiting:
                call.end(shutting_down())

    def end_all(self) -> None:
        """End all requests with an error."""
        self.is_draining = True
        for call in list(self.calls):
            call.end(shutting_down())

    async def close(self) -> None:
        """Unload the model, and end the threads."""
        self.end_all()
        self.pool.shutdown(wait=False, cancel_futures=True)
        await self.engine.close()

    def _observe(self) -> None:
        calls, engine = self.calls, self.engine
        self.metrics.observe(
            "requests_running",
            "Requests that the engine answers.",
            lambda: sum(not call.is_waiting for call in calls),
        )
        self.metrics.observe(
            "requests_waiting",
            "Requests that are read or wait.",
            lambda: sum(call.is_waiting for call in calls),
        )
        self.metrics.observe(
            "body_bytes", "Bytes of bodies.", lambda: float(self.admission.open_bytes)
        )
        self.metrics.observe(
            "model_loaded", "Whether the model is loaded.", lambda: engine.state == "loaded"
        )
