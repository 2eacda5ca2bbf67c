"""Bodies that were changed at random: no answer is an error of the server."""

from __future__ import annotations

import json
import logging
import random
from copy import deepcopy
from http.client import HTTPConnection
from typing import Any

import pytest
from openai.types.shared import ErrorObject

from tests.support.http_servers import CHAT, HttpServer, chat, read

COUNT = 500
_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308, 5e-324),
    *(
        "",
        " ",
        "x",
        "\ud800",
        "\x00",
        "\x1b[31m",
        "<image>",
        "a" * 500,
        "data:,",
        "data:image/png",
    ),
    *([], {}, [[]], [None], {"": ""}, {"type": "text"}, {"url": None}, {"$ref": "#"}),
    *("system", "assistant", "tool", "image_url", "json_schema", "json_object", "/etc/passwd"),
    *("http://127.0.0.1/", "file:///etc/passwd", "-", "clipboard:"),
)


def bodies(generator: random.Random, pictures: list[str]) -> list[dict[str, Any]]:
    """Return valid bodies, which the tests change."""
    schema = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 3}}}
    return [
        chat("Describe this image.", generator.choice(pictures), max_tokens=4),
        chat("Hi", max_tokens=3, stream=True, stream_options={"include_usage": True}),
        chat("Hi", max_tokens=2, n=2, temperature=1.0, seed=3, stop=["a"], top_p=0.9, top_k=4),
        chat(
            "Hi",
            max_tokens=8,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        ),
        chat("Hi", max_tokens=4, structured_outputs={"regex": "[a-c]{2}"}, bad_words=["d"]),
        chat("Hi", structured_outputs={"choice": ["yes", "no"]}, user="me", logprobs=False),
        chat("Hi", max_tokens=3, logprobs=True, top_logprobs=2, presence_penalty=1),
        chat("Hi", max_tokens=3, frequency_penalty=-1, cache_salt="a", ignore_eos=True),
        {"prompt": "A <image> is", "images": [generator.choice(pictures)], "max_tokens": 3},
    ]


def spots(value: Any) -> list[tuple[Any, Any]]:
    """Return every container in *value* with each of its keys."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        each = waiting.pop()
        keys = list(each) if isinstance(each, dict) else range(len(each))
        for key in keys:
            found.append((each, key))
            if isinstance(each[key], dict | list):
                waiting.append(each[key])
    return found


def changed(generator: random.Random, body: dict[str, Any]) -> bytes:
    """Return *body* as JSON after one to three random changes."""
    for _ in range(generator.randint(1, 3)):
        container, key = generator.choice(spots(body) or [(body, "x")])
        kind = generator.randrange(4)
        if kind == 0:
            container[key] = deepcopy(generator.choice(_ODD))
        elif kind == 1 and isinstance(container, dict):
            del container[key]
        elif kind == 2 and isinstance(container, dict):
            name = str(key) + generator.choice(("", "s", "_", "\n"))
            container[name] = deepcopy(generator.choice(_ODD))
        elif isinstance(container, list):
            container.append(deepcopy(generator.choice(_ODD)))
    # The least limit keeps the run short.
    if isinstance(body.get("max_tokens"), int) and body["max_tokens"] > 16:
        body["max_tokens"] = 16
    data = json.dumps(body).encode()
    if generator.random() < 0.15:
        at = generator.randrange(len(data))
        data = generator.choice(
            (data[:at], data[:at] + b"\xff" + data[at:], data + data, b"[" * 2000, b"\x00" + data)
        )
    return data


def test_no_changed_body_is_an_error_of_the_server(
    demo: HttpServer, scenes: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    generator = random.Random(18)
    connection = HTTPConnection("127.0.0.1", demo.port, timeout=60)
    statuses: dict[int, int] = {}
    with caplog.at_level(logging.WARNING):
        for number in range(COUNT):
            body = generator.choice(bodies(generator, scenes))
            body.setdefault("max_tokens", 6)
            path = CHAT if "messages" in body else "/v1/completions"
            data = changed(generator, body)
            connection.request("POST", path, data, {"Content-Type": "application/json"})
            status, headers, answer = read(connection.getresponse())
            statuses[status] = statuses.get(status, 0) + 1
            shown = (number, data[:300], answer)
            assert status < 500, shown
            if status != 200:
                ErrorObject.model_validate(answer["error"], strict=True)
                assert headers["content-type"] == "application/json"
                assert "Traceback" not in str(answer), shown
            elif headers["content-type"].startswith("text/event-stream"):
                assert answer.endswith("data: [DONE]\n\n"), shown
                assert '"error"' not in answer, shown
    connection.close()

    assert "Traceback" not in caplog.text
    assert statuses[200] > 50
    assert statuses[400] > 100
    demo.wait_until_idle()


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema, "minItems": 30}
    return schema


def doubled(levels: int) -> dict[str, Any]:
    """Return a schema whose alternatives double at each of *levels* references."""
    parts: dict[str, Any] = {
        f"a{at}": {"anyOf": [{"$ref": f"#/$defs/a{at + 1}"}] * 2} for at in range(levels)
    }
    return {"$defs": {**parts, f"a{levels}": {"type": "string"}}, "$ref": "#/$defs/a0"}


@pytest.mark.parametrize(
    "form",
    [
        {"structured_outputs": {"regex": "((a{1,1000}){1,1000}){1,1000}"}},
        {"structured_outputs": {"regex": "(a|aa|aaa)*" * 200}},
        {"structured_outputs": {"regex": "(.*a){200}"}},
        *(
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": s}}}
            for s in (
                nested(40),
                doubled(30),
                {
                    "allOf": [
                        {"type": "string", "pattern": f"(.*{letter}){{8}}"} for letter in "abcdef"
                    ]
                },
            )
        ),
    ],
)
def test_a_form_that_explodes_costs_no_more_than_others(
    demo: HttpServer, form: dict[str, Any]
) -> None:
    assert demo.ask(body=chat("Hi", max_tokens=4, **form))[0] in (200, 400)
    assert demo.ask("/health")[0] == 200
