"""The engine of the server: loaded when it is needed, unloaded when nobody needs it for a while."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Literal

from idefics_cli.core.errors import IdeficsError
from idefics_cli.core.threads import in_background
from idefics_cli.engine.protocol import Engine, EngineFactory
from idefics_cli.server.errors import overloaded

State = Literal["unloaded", "loading", "loaded", "failed"]

_RETRY_SECONDS = 10
_log = logging.getLogger(__name__)


class WarmEngine:
    """Loads an engine, counts who uses it, and unloads it. The event loop owns it.

    Args:
        factory: Loads the model.
        keep_alive_seconds: How long an engine stays loaded after its last use; None for ever.
        tell: Called with a line when the engine is loaded or unloaded.

    Attributes:
        state: What `/health` tells.
        context_tokens: Number of tokens of the context, once the model was loaded.
        revision: The commit of the weights, once the model was loaded.
    """

    def __init__(
        self,
        factory: EngineFactory,
        *,
        keep_alive_seconds: float | None,
        tell: Callable[[str], None],
    ) -> None:
        self._factory = factory
        self._keep_alive_seconds = keep_alive_seconds
        self._tell = tell
        self.state: State = "unloaded"
        self.context_tokens: int | None = None
        self.revision: str | None = None
        self._engine: Engine | None = None
        self._loading: asyncio.Task[Engine] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._is_over = False
        self._users = 0
        self._timer: asyncio.TimerHandle | None = None
        self._failed_at = 0.0

    async def load(self) -> Engine:
        """Return the loaded engine; load it if it is not.

        Raises:
            IdeficsError: If the model cannot be loaded.
        """
        if self._engine is not None:
            return self._engine
        if self._loading is None:
            self._loading = asyncio.ensure_future(self._load())
        # A client that leaves does not end the loading, for which others may wait.
        return await asyncio.shield(self._loading)

    @contextmanager
    def held(self) -> Iterator[Engine | None]:
        """Yield the engine if it is loaded, else None. It is not unloaded inside the `with` block.

        `load_again` loads it.
        """
        self._users += 1
        self._stop_timer()
        try:
            yield self._engine
        finally:
            self._users -= 1
            self._start_timer()

    async def load_again(self) -> Engine:
        """Return the loaded engine, as `load`, but do not try again soon after a failure.

        Raises:
            ApiError: If the model cannot be loaded now.
        """
        now = asyncio.get_running_loop().time()
        if self.state == "failed" and now - self._failed_at < _RETRY_SECONDS:
            raise _not_loaded()
        try:
            return await self.load()
        except IdeficsError as error:
            raise _not_loaded() from error

    async def close(self) -> None:
        """Unload the engine, for the end of the server."""
        self._is_over = True
        self._stop_timer()
        if self._loading is not None:
            self._loading.cancel()
        self._unload()
        if self._closing is not None:
            await self._closing

    async def _load(self) -> Engine:
        if self._closing is not None:  # the memory must be free first
            await self._closing
        self.state = "loading"
        try:
            self._engine = await asyncio.wrap_future(
                in_background(lambda: self._factory(progress=self._report), name="loading")
            )
        except BaseException as error:
            self.state, self._failed_at = "failed", asyncio.get_running_loop().time()
            if isinstance(error, Exception):
                _log.warning("the model cannot be loaded: %s", error)
            raise
        finally:
            self._loading = None
        self.state = "loaded"
        self.context_tokens = self._engine.context_tokens
        self.revision = self._engine.revision
        self._start_timer()
        return self._engine

    def _report(self, phase: str, share: float | None) -> None:
        # The thread that loads calls this. The error ends it when the server ends.
        if self._is_over:
            raise CancelledError

    def _start_timer(self) -> None:
        self._stop_timer()
        if self._users or self._engine is None or self._keep_alive_seconds is None:
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._keep_alive_seconds, self._unload_idle)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _unload_idle(self) -> None:
        if not self._users:
            self._unload()
            self._tell("the model is unloaded: nobody asked for a while")

    def _unload(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            self.state = "unloaded"
            self._closing = asyncio.ensure_future(self._close(engine))

    async def _close(self, engine: Engine) -> None:
        try:
            await asyncio.wrap_future(in_background(engine.close, name="unloading"))
        finally:
            self._closing = None


def _not_loaded() -> Exception:
    return overloaded("the model cannot be loaded now", "model_not_loaded", _RETRY_SECONDS)
