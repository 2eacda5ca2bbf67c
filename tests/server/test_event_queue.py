"""The queue of the events of a request: few wake-ups for much text, and no wait for an end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from idefics_cli.core.types import Completion, TokenChunk
from idefics_cli.server.event_queue import Event, EventQueue

LONG = 60.0  # seconds that no test waits


def text(word: str) -> Event:
    return 0, TokenChunk(word, 1, prompt_tokens=3)


END: Event = (0, Completion("abc", 3, 0, 4, "stop"))


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def within_limit() -> None:
        async with asyncio.timeout(LONG / 2):
            await work()

    asyncio.run(within_limit())


def put_in_thread(queue: EventQueue, *events: Event) -> None:
    """Put *events* as the inference thread does, and wait until it has."""
    thread = threading.Thread(target=lambda: [queue.put(event) for event in events])
    thread.start()
    thread.join()


def test_the_first_text_comes_at_once_and_further_text_together_with_the_end() -> None:
    async def work() -> None:
        queue = EventQueue(pause_seconds=LONG)
        first = asyncio.ensure_future(queue.take())
        await asyncio.sleep(0)
        put_in_thread(queue, text("a"))
        assert await first == [text("a")]

        more = asyncio.ensure_future(queue.take())
        await asyncio.sleep(0)
        put_in_thread(queue, text("b"), text("c"))
        await asyncio.sleep(0.05)
        assert not more.done()
        put_in_thread(queue, END)
        assert await more == [text("b"), text("c"), END]

    run(work)


def test_text_waits_for_the_pause_and_no_longer() -> None:
    async def work() -> None:
        queue = EventQueue(pause_seconds=0.05)
        loop = asyncio.get_running_loop()
        put_in_thread(queue, text("a"))
        await queue.take()
        started = loop.time()
        put_in_thread(queue, text("b"))
        assert await queue.take() == [text("b")]
        assert loop.time() - started >= 0.04

        await asyncio.sleep(0.06)  # the pause is over, so the next text is taken without a wait
        last = asyncio.ensure_future(queue.take())
        await asyncio.sleep(0)
        put_in_thread(queue, text("c"))
        assert await last == [text("c")]

    run(work)


def test_silence_is_no_event() -> None:
    async def work() -> None:
        queue = EventQueue(pause_seconds=0.01)
        assert await queue.take(0.01) == []
        put_in_thread(queue, text("a"))
        assert await queue.take(LONG) == [text("a")]
        assert await queue.take(0.01) == []

    run(work)


def test_a_taker_that_is_cancelled_leaves_the_events() -> None:
    async def work() -> None:
        queue = EventQueue(pause_seconds=LONG)
        taking = asyncio.ensure_future(queue.take())
        await asyncio.sleep(0)
        taking.cancel()
        await asyncio.wait([taking])
        put_in_thread(queue, text("a"), END)
        assert await queue.take() == [text("a"), END]

    run(work)


def test_too_much_text_is_refused_but_never_an_end() -> None:
    async def work() -> None:
        queue = EventQueue()
        assert all(queue.put(text("x")) for _ in range(1000))
        assert not queue.put(text("y"))
        assert queue.put(END)
        assert await queue.take() == [text("x")] * 1000 + [END]

    run(work)


def test_an_event_after_the_end_of_the_loop_is_no_error() -> None:
    async def make() -> EventQueue:
        queue = EventQueue()
        taking = asyncio.ensure_future(queue.take())
        await asyncio.sleep(0)
        taking.cancel()
        return queue

    assert asyncio.run(make()).put(END)
