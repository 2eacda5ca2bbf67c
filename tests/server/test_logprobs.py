"""Probabilities of tokens over HTTP, in the shapes that OpenAI's client demands."""

from __future__ import annotations

from typing import Any

import pytest

from idefics_cli.core.types import Attachment, GenerationRequest, Message, Sampling
from idefics_cli.engine.local.engine import LocalEngine
from tests.support.http_servers import HttpServer, chat, events

QUESTION = "Describe this image."


def test_the_strict_client_gets_the_probabilities_of_the_tokens(
    demo: HttpServer, demo_engine: LocalEngine, scenes: list[str]
) -> None:
    create = demo.client().chat.completions.create
    messages: Any = chat(QUESTION, scenes[1])["messages"]
    request = GenerationRequest(
        (Message("user", (Attachment(scenes[1]), QUESTION)),), Sampling(top_logprobs=2)
    )
    expected = demo_engine.complete([demo_engine.prepare(request)])[0]

    whole = create(model="demo", messages=messages, logprobs=True, top_logprobs=2)
    chunks = list(
        create(model="demo", messages=messages, logprobs=True, top_logprobs=2, stream=True)
    )

    told = whole.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    assert [(one.token, one.bytes) for one in told.content] == [
        (one.text, list(one.data)) for one in expected.logprobs
    ]
    assert "".join(one.token for one in told.content).strip() == expected.text
    assert all(len(one.top_logprobs) == 2 for one in told.content)
    assert all(one.logprob <= 0 for one in told.content)
    streamed = [
        one
        for chunk in chunks
        if chunk.choices[0].logprobs
        for one in chunk.choices[0].logprobs.content or ()
    ]
    assert [one.token for one in streamed] == [one.token for one in told.content]
    assert [one.logprob for one in streamed] == pytest.approx(
        [one.logprob for one in told.content], abs=1e-3
    )


def test_a_completion_has_the_probabilities_in_its_own_shape(demo: HttpServer) -> None:
    client = demo.client().completions
    whole = client.create(model="demo", prompt="A red circle", max_tokens=5, logprobs=2)
    body = {"prompt": "A red circle", "max_tokens": 5, "logprobs": 2, "stream": True}
    _, _, text = demo.ask("/v1/completions", body)

    told = whole.choices[0].logprobs
    assert told is not None
    assert told.tokens is not None
    assert told.token_logprobs is not None
    assert told.text_offset == [len("".join(told.tokens[:at])) for at in range(len(told.tokens))]
    assert "".join(told.tokens).lstrip() == whole.choices[0].text
    assert [len(top) for top in told.top_logprobs or ()] == [2] * len(told.tokens)
    streamed = [one["choices"][0]["logprobs"] or {} for one in events(text)]
    assert [token for each in streamed for token in each.get("tokens", ())] == told.tokens
    assert [at for each in streamed for at in each.get("text_offset", ())] == told.text_offset
