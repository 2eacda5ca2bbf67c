"""Every family answers many clients over HTTP as it answers each alone; base models complete."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from idefics_cli.core.types import Attachment, GenerationRequest, Message, Sampling
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.server.service import ServerOptions
from tests.support.http_servers import (
    PICTURE,
    HttpServer,
    StillOpen,
    chat,
    events,
    serving,
)
from tests.support.prompts import open_engine

CLIENTS = 16


def asked(number: int) -> tuple[Sampling, tuple[str | Attachment, ...]]:
    """Return what a client asks: greedy or seeded, with or without pictures, of any length."""
    seed = None if number % 2 else number
    sampling = Sampling(
        temperature=0.0 if seed is None else 0.8,
        seed=seed,
        max_new_tokens=3 + 2 * (number % 5),
    )
    pictures = tuple(Attachment(PICTURE) for _ in range(number % 3))
    return sampling, (*pictures, f"What is in image {number}?")


@pytest.mark.parametrize("kind", ["idefics", "idefics2-split", "idefics3", "smolvlm"])
def test_sixteen_clients_of_a_family_get_what_each_gets_alone(
    endless: Callable[[str], LocalEngine], kind: str
) -> None:
    engine = endless(kind)
    expected = []
    for number in range(CLIENTS):
        sampling, parts = asked(number)
        request = GenerationRequest((Message("user", parts),), sampling)
        (reply,) = engine.complete([engine.prepare(request)])
        expected.append((reply.text, reply.finish, reply.new_tokens))
    barrier = threading.Barrier(CLIENTS)

    def ask(server: HttpServer, number: int) -> tuple[str, str, int]:
        sampling, parts = asked(number)
        fields: dict[str, Any] = {
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_new_tokens,
            "seed": sampling.seed,
        }
        body = chat(str(parts[-1]), *[PICTURE] * (len(parts) - 1), **fields)
        barrier.wait(30)
        _, _, answer = server.ask(body=body)
        choice = answer["choices"][0]
        tokens = answer["usage"]["completion_tokens"]
        return choice["message"]["content"], choice["finish_reason"], tokens

    with (
        serving(StillOpen(engine), ServerOptions(engine.spec)) as server,
        ThreadPoolExecutor(CLIENTS) as pool,
    ):
        answers = list(pool.map(lambda number: ask(server, number), range(CLIENTS)))

    assert answers == expected


def test_a_base_model_completes_prompts_and_takes_no_messages(
    checkpoint: Callable[[str], Path],
) -> None:
    with open_engine(checkpoint("idefics2-base"), "idefics2-base") as engine:
        request = GenerationRequest(
            (Message("user", ("A ", Attachment(PICTURE), " is")),),
            Sampling(max_new_tokens=9),
            "complete",
        )
        (expected,) = engine.complete([engine.prepare(request)])
        with serving(StillOpen(engine), ServerOptions(engine.spec, names=("base",))) as server:
            body: dict[str, Any] = {"prompt": "A <image> is", "images": [PICTURE], "max_tokens": 9}
            _, _, whole = server.ask("/v1/completions", body)
            _, _, text = server.ask("/v1/completions", {**body, "stream": True})
            strict = server.client().completions.create(
                model="base", prompt="A <image> is", max_tokens=9, extra_body={"images": [PICTURE]}
            )
            found = events(text)
            _, _, short = server.ask("/v1/completions", {"prompt": "A cat"})
            status, _, error = server.ask(body=chat("Hi"))

    assert whole["object"] == "text_completion"
    assert whole["id"].startswith("cmpl-")
    assert whole["choices"] == [
        {
            "index": 0,
            "text": expected.text,
            "logprobs": None,
            "finish_reason": expected.finish,
        }
    ]
    assert "".join(one["choices"][0]["text"] for one in found) == expected.text
    assert found[-1]["choices"][0]["finish_reason"] == expected.finish
    assert strict.choices[0].text == expected.text
    assert short["usage"]["completion_tokens"] <= 16
    assert (status, error["error"]["param"]) == (400, "messages")
    assert "/v1/completions" in error["error"]["message"]
