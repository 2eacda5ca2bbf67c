"""The endpoints for text: `/v1/chat/completions` and `/v1/completions`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from idefics_cli.core.errors import PromptError
from idefics_cli.core.json_objects import decode_object
from idefics_cli.core.types import Completion
from idefics_cli.engine.protocol import Engine
from idefics_cli.server.bodies import check_content_type, read_body
from idefics_cli.server.errors import ApiError, api_error, bad_field, shutting_down
from idefics_cli.server.exchange import ClientGoneError, Exchange, exchange_of, send_json
from idefics_cli.server.fields import ignored_header
from idefics_cli.server.generation import Generation, SlowReaderError
from idefics_cli.server.reading import ApiRequest
from idefics_cli.server.replies import DONE, ReplyShape, event, fingerprint
from idefics_cli.server.service import Call, Service
from idefics_cli.server.streams import ReplyStream, check_ended

_T = TypeVar("_T")


class TextEndpoint:
    """Answers requests for text.

    Args:
        service: The parts of the server.
        is_chat: Whether requests have messages, not a prompt.
    """

    def __init__(self, service: Service, *, is_chat: bool) -> None:
        self._service = service
        self._is_chat = is_chat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        service, headers = self._service, Headers(scope=scope)
        exchange = exchange_of(scope)
        exchange.endpoint = "chat.completions" if self._is_chat else "completions"
        check_content_type(headers)
        if service.is_draining:
            raise shutting_down()
        call = Call()
        with service.admission.admit() as place:
            service.calls.add(call)
            try:
                await self._answer(
                    call,
                    exchange,
                    read_body(receive, headers, place, service.options.body),
                    receive,
                    send,
                )
            except ClientGoneError:
                # The handlers of the app would make it an error of the server.
                exchange.is_gone = True
            finally:
                service.calls.discard(call)

    async def _answer(
        self,
        call: Call,
        exchange: Exchange,
        reading: Coroutine[Any, Any, bytes],
        receive: Receive,
        send: Send,
    ) -> None:
        answer = _Answer(self._service, call, exchange, send, is_chat=self._is_chat)
        leaving = None
        try:
            # Nothing here keeps the body, which may have megabytes, until the answer ends.
            giving = answer.give(await _first(reading, call.stop))
            leaving = asyncio.ensure_future(_until_gone(receive))
            await _first(giving, call.stop, leaving)
        except ClientGoneError:
            raise
        except SlowReaderError:
            raise ClientGoneError from None
        except Exception as error:
            await answer.fail(error)
        finally:
            if leaving is not None:
                leaving.cancel()
                await asyncio.wait([leaving])


class _Answer:
    """The answer to one request."""

    def __init__(
        self, service: Service, call: Call, exchange: Exchange, send: Send, *, is_chat: bool
    ) -> None:
        self._service = service
        self._call = call
        self._exchange = exchange
        self._send = send
        self._is_chat = is_chat
        self._is_ended = False
        self._submitted = 0.0

    async def give(self, body: bytes) -> None:
        """Read *body*, and send the whole answer."""
        service = self._service
        loop, pool = asyncio.get_running_loop(), service.pool
        generation = self._call.generation = Generation()
        try:
            with service.engine.held() as loaded:
                # The job that reads also submits, if it can: to hand over to another thread and
                # back takes longer than to read a small body.
                read = await loop.run_in_executor(pool, self._read, body, loaded, generation)
                del body
                if loaded is None:
                    loaded = await service.engine.load_again()
                    await loop.run_in_executor(pool, self._submit, loaded, read, generation)
                shape = ReplyShape(
                    is_chat=self._is_chat,
                    created=int(time.time()),
                    model=self._exchange.model,
                    fingerprint=fingerprint(service.options.spec, loaded.revision),
                    includes_usage=read.options.includes_usage,
                    tells_logprobs=read.options.tells_logprobs,
                    identity=ReplyShape.new_identity(is_chat=self._is_chat),
                )
                send_reply = self._stream if read.options.streams else self._send_whole
                outcomes = await send_reply(shape, generation, read)
            self._note(outcomes)
        finally:
            generation.cancel()

    async def fail(self, error: Exception) -> None:
        """End the answer with *error*: with its status, or as the last event of a stream."""
        answer = api_error(error, self._exchange.identity)
        self._exchange.note_fault(answer)
        is_ours = answer.status == 500
        if not self._exchange.status:
            # The error handlers of the app answer it, and an error of ours is in the log.
            if is_ours or answer is error:
                raise error
            raise answer from None
        if not self._is_ended:
            await self._write(event(answer.body()) + DONE, ends=True)
        if is_ours:
            raise error

    def _read(self, body: bytes, engine: Engine | None, generation: Generation) -> ApiRequest:
        """Return what *body* asks for, and submit it if the model is loaded.

        A body may have megabytes, so this runs in a thread of the pool.
        """
        try:
            value = decode_object(body)
        except PromptError as error:
            raise ApiError(400, f"the body: {error}", code="invalid_json") from None
        reader, exchange = self._service.reader, self._exchange
        read = reader.read_chat(value) if self._is_chat else reader.read_completion(value)
        exchange.model = self._checked_name(read)
        exchange.pictures = len(read.params)
        exchange.unknown = read.options.unknown
        if engine is not None:
            self._submit(engine, read, generation)
        return read

    def _checked_name(self, read: ApiRequest) -> str:
        options = self._service.options
        if read.model is not None and read.model not in options.names:
            raise ApiError(
                404,
                f"there is no model `{read.model[:100]}`, only `{options.names[0]}`",
                code="model_not_found",
                param="model",
            )
        if self._is_chat and not options.spec.chats:
            raise bad_field("messages", "need a model that chats: this one takes /v1/completions")
        return options.names[0]

    def _submit(self, engine: Engine, read: ApiRequest, generation: Generation) -> None:
        """Prepare the pictures, and submit the request; in a thread of the pool."""
        self._submitted = time.perf_counter()
        if generation.is_cancelled:
            return
        prepared = self._service.pictures.prepare(engine, read.generation, read.params)
        if not generation.is_cancelled:
            generation.submit(engine, prepared, read.options)

    async def _send_whole(
        self, shape: ReplyShape, generation: Generation, read: ApiRequest
    ) -> list[Completion]:
        outcomes = await generation.outcomes(read.options.replies)
        check_ended(outcomes)
        await send_json(self._send, 200, shape.whole(outcomes), _headers(read))
        return outcomes

    async def _stream(
        self, shape: ReplyShape, generation: Generation, read: ApiRequest
    ) -> list[Completion]:
        options, exchange = self._service.options, self._exchange
        stream = ReplyStream(shape, read.options.replies)
        wait = options.role_seconds
        while not stream.is_ended:
            events = await generation.next_events(wait)
            wait = options.silence_seconds
            written = stream.feed(events) if events else stream.silence()
            if stream.error is not None and not exchange.status:
                raise stream.error  # nothing is sent yet, so the answer can have its status
            if not exchange.status:
                await self._begin(read)
            if stream.has_text and exchange.first_seconds is None:
                exchange.first_seconds = exchange.seconds
            # The end goes out together with the last text: each write costs a system call, as
            # `JoinedWrites` tells.
            written += stream.end() if stream.is_ended else b""
            await self._write(written, ends=stream.is_ended)
            if stream.error is not None:
                raise stream.error
        return stream.outcomes

    async def _begin(self, read: ApiRequest) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            *((name.encode(), value.encode()) for name, value in _headers(read).items()),
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _write(self, data: bytes, *, ends: bool = False) -> None:
        self._is_ended = ends
        if data or ends:
            await self._send({"type": "http.response.body", "body": data, "more_body": not ends})

    def _note(self, outcomes: list[Completion]) -> None:
        exchange, metrics = self._exchange, self._service.metrics
        first = outcomes[0]
        exchange.prompt_tokens = first.prompt_tokens
        exchange.cached_tokens = first.reused_tokens
        exchange.new_tokens = sum(outcome.new_tokens for outcome in outcomes)
        seconds = time.perf_counter() - self._submitted
        busy = first.prefill_seconds + first.decode_seconds
        metrics.queue_seconds.observe(max(0.0, seconds - busy))
        if first.new_tokens > 1:
            metrics.between_seconds.observe(first.decode_seconds / (first.new_tokens - 1))
        self._service.admission.note_seconds(exchange.seconds)


def _headers(read: ApiRequest) -> dict[str, str]:
    ignored = ignored_header(read.options.ignored)
    return {"x-idefics-ignored": ignored} if ignored else {}


async def _until_gone(receive: Receive) -> None:
    """Wait until the client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _first(
    work: Coroutine[Any, Any, _T],
    stop: asyncio.Future[ApiError],
    leaving: asyncio.Future[None] | None = None,
) -> _T:
    """Return the result of *work*, unless the server ends, or the client leaves, before.

    Raises:
        ApiError: If the server ends.
        ClientGoneError: If the client leaves.
    """
    task = asyncio.ensure_future(work)
    signals: list[asyncio.Future[Any]] = [stop] if leaving is None else [stop, leaving]
    try:
        await asyncio.wait([task, *signals], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if stop.done():
            raise stop.result()
        raise ClientGoneError
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
        # A task keeps its error, whose traceback keeps this frame. Without the names of the tasks,
        # the body and the pictures of a failed request need no garbage collector.
        del task, signals, leaving
