"""Every field of the API is honoured, named as without effect, or refused by its name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from idefics_cli.core.errors import PromptError
from idefics_cli.core.types import Attachment, Message, PictureDetail, Sampling
from idefics_cli.server.errors import ApiError, api_error
from idefics_cli.server.fields import (
    HONOURED,
    REFUSED,
    WITHOUT_EFFECT,
    ignored_header,
    read_options,
)
from idefics_cli.server.reading import BodyReader
from tests.support.http_servers import PICTURE, chat

SAMPLING = Sampling(max_new_tokens=512, temperature=0.25)
READER = BodyReader(SAMPLING, system=None, most_images=3)


def refusal(body: dict[str, object], *, is_chat: bool = True) -> ApiError:
    with pytest.raises((ApiError, PromptError)) as caught:
        READER.read_chat(body) if is_chat else READER.read_completion(body)
    return api_error(caught.value, "id")


def test_every_field_of_openai_is_in_a_table() -> None:
    known = HONOURED.keys() | REFUSED.keys() | WITHOUT_EFFECT | {"model", "messages", "stream"}

    of_chats = chat_create_params.CompletionCreateParamsBase.__annotations__.keys()
    of_texts = completion_create_params.CompletionCreateParamsBase.__annotations__.keys()

    assert not of_chats - known
    assert not of_texts - known - {"prompt"}
    assert not HONOURED.keys() & REFUSED.keys()
    assert not HONOURED.keys() & WITHOUT_EFFECT


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, SAMPLING),
        ({"temperature": None, "stop": None}, SAMPLING),
        ({"temperature": 0}, Sampling(temperature=0.0)),
        ({"temperature": 2}, Sampling(temperature=2.0)),
        ({"top_p": 0.5}, Sampling(temperature=0.25, top_p=0.5)),
        ({"top_k": -1}, SAMPLING),
        ({"top_k": 5}, Sampling(temperature=0.25, top_k=5)),
        ({"repetition_penalty": 1.5}, Sampling(temperature=0.25, repetition_penalty=1.5)),
        ({"seed": -1}, Sampling(temperature=0.25, seed=2**63 - 1)),
        ({"seed": 2**64 + 3}, Sampling(temperature=0.25, seed=3)),
        ({"presence_penalty": 2}, Sampling(0.25, presence_penalty=2.0)),
        ({"frequency_penalty": -0.5}, Sampling(0.25, frequency_penalty=-0.5)),
        ({"ignore_eos": True}, Sampling(0.25, ignores_end=True)),
        ({"logprobs": False, "top_logprobs": 0}, SAMPLING),
        ({"logprobs": True}, Sampling(0.25, top_logprobs=0)),
        ({"top_logprobs": 20, "logprobs": True}, Sampling(0.25, top_logprobs=20)),
        ({"stop": "a"}, Sampling(temperature=0.25, stop=("a",))),
        ({"stop": ["a", "b"]}, Sampling(temperature=0.25, stop=("a", "b"))),
        ({"max_tokens": 5}, Sampling(temperature=0.25, max_new_tokens=5)),
        ({"max_completion_tokens": 600}, Sampling(temperature=0.25, max_new_tokens=600)),
        ({"max_tokens": 7, "max_completion_tokens": 6}, Sampling(0.25, max_new_tokens=6)),
    ],
)
def test_fields_change_how_tokens_are_chosen(fields: dict[str, object], expected: Sampling) -> None:
    assert read_options(fields, SAMPLING).sampling == expected


def test_other_fields_are_honoured() -> None:
    options = read_options(
        {
            "n": 3,
            "stream": True,
            "stream_options": {"include_usage": True},
            "priority": "batch",
            "bad_words": ["a", " ", "a"],
            "cache_salt": "mine",
        },
        SAMPLING,
    )

    assert options.cache_salt == "mine"
    assert READER.read_chat(chat(cache_salt="mine")).generation.cache_salt == "mine"

    assert (options.replies, options.streams, options.includes_usage) == (3, True, True)
    assert (options.urgency, options.banned) == ("batch", ("a",))
    assert read_options({"priority": 0}, SAMPLING).urgency == "interactive"
    # LangChain sends it without a stream.
    assert not read_options({"stream_options": {"include_usage": True}}, SAMPLING).streams


@pytest.mark.parametrize("name", sorted(WITHOUT_EFFECT))
def test_a_field_without_effect_is_named(name: str) -> None:
    options = read_options({name: "x"}, SAMPLING)

    assert options.ignored == (name,)
    assert options.sampling == SAMPLING
    assert read_options({name: None}, SAMPLING).ignored == ()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_field_that_no_answer_could_have_is_refused(name: str) -> None:
    values: tuple[object, ...] = ({"a": 1}, [{"a": 1}], 7, "yes")
    for value in values:
        error = refusal({**chat(), name: value})
        assert (error.status, error.code, error.param) == (400, "unsupported_parameter", name)
    for neutral in (*REFUSED[name], None):
        READER.read_chat({**chat(), name: neutral})


def test_tools_that_are_switched_off_are_no_error() -> None:
    READER.read_chat(chat(tools=[{"type": "function"}], tool_choice="none"))

    assert refusal(chat(tools=[{"type": "function"}], tool_choice="auto")).param == "tools"
    assert refusal(chat(num_beams=True)).param == "num_beams"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"repetition_penalty": 1e99}, "repetition_penalty"),
        ({"top_k": 2**31}, "top_k"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "0"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"max_tokens": 1e300}, "max_tokens"),
        ({"seed": 1.5}, "seed"),
        ({"seed": True}, "seed"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"n": True}, "n"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ["a" * 257]}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop": "\ud800"}, "stop"),
        ({"stream": 1}, "stream"),
        ({"stream_options": []}, "stream_options"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"priority": "high"}, "priority"),
        ({"priority": False}, "priority"),
        ({"bad_words": "a"}, "bad_words"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"presence_penalty": True}, "presence_penalty"),
        ({"frequency_penalty": "1"}, "frequency_penalty"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"logprobs": 1}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"cache_salt": 5}, "cache_salt"),
        ({"cache_salt": "a" * 257}, "cache_salt"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": []}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, None),
        ({"response_format": {"type": "text", "x": "y" * 70_000}}, "response_format"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs"),
        ({"structured_outputs": {"choice": ["a"]}}, "structured_outputs.choice"),
        ({"guided_json": {"$ref": "http://127.0.0.1/x"}}, "guided_json"),
        ({"guided_regex": "a", "guided_choice": ["a", "b"]}, "guided_regex"),
        ({"model": 5}, "model"),
    ],
)
def test_a_wrong_value_is_refused_with_its_path(
    fields: dict[str, object], param: str | None
) -> None:
    error = refusal({**chat(), **fields})

    assert (error.status, error.code) == (400, "invalid_value")
    assert param is None or error.param in (param, param.partition(".")[0])


def parts(*values: object, role: str = "user") -> dict[str, object]:
    return {"messages": [{"role": role, "content": list(values)}]}


TEXT = {"type": "text", "text": "What is it?"}


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "messages", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "Hi"}, "messages", "invalid_value"),
        ({"messages": ["Hi"]}, "messages[0]", "invalid_value"),
        ({"messages": [{}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": ["user"]}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "invalid_value"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages[0].content", "invalid_value"),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "messages[0].role",
            "unsupported_parameter",
        ),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]},
            "messages[0].tool_calls",
            "unsupported_parameter",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "x"},
                    {"role": "assistant", "content": "y"},
                ]
            },
            "messages[1].role",
            "invalid_value",
        ),
        (
            {"messages": [{"role": "user", "content": "\ud800"}]},
            "messages[0].content",
            "invalid_value",
        ),
        (parts("x"), "messages[0].content[0]", "invalid_value"),
        (parts({"type": "text"}), "messages[0].content[0].text", "invalid_value"),
        (parts({"type": 5}), "messages[0].content[0].type", "invalid_value"),
        (parts({"type": "input_audio"}), "messages[0].content[0].type", "unsupported_parameter"),
        (parts({"type": "file"}), "messages[0].content[0].type", "unsupported_parameter"),
        (parts({"type": "video_url"}), "messages[0].content[0].type", "unsupported_parameter"),
        (
            parts({"type": "image_url"}),
            "messages[0].content[0].image_url",
            "invalid_image_url",
        ),
        (
            parts({"type": "image_url", "image_url": {"url": 5}}),
            "messages[0].content[0].image_url.url",
            "invalid_image_url",
        ),
        (
            parts({"type": "image_url", "image_url": {"url": "x", "detail": "huge"}}, TEXT),
            "messages[0].content[0].image_url.detail",
            "invalid_value",
        ),
        (
            parts({"type": "image_url", "image_url": PICTURE}, TEXT, role="system"),
            "messages[0].content",
            "unsupported_parameter",
        ),
        (chat("x", *[PICTURE] * 4), "messages[0].content[3].image_url.url", "invalid_value"),
    ],
)
def test_a_wrong_message_is_refused_with_its_path(
    body: dict[str, object], param: str, code: str
) -> None:
    error = refusal(body)

    assert (error.status, error.param, error.code) == (400, param, code)


def test_messages_are_read_as_they_are_written() -> None:
    body = {
        "messages": [
            {"role": "developer", "content": "Be short."},
            {"role": "user", "content": [TEXT, {"type": "image_url", "image_url": "data:a"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A cat."}], "refusal": None},
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "data:b", "detail": "low"}},
                    TEXT,
                ],
            },
        ],
        "model": "m",
    }

    read = READER.read_chat(body)

    assert read.generation.messages == (
        Message("system", ("Be short.",)),
        Message("user", ("What is it?", Attachment("data:a"))),
        Message("assistant", ("A cat.",)),
        Message("user", (Attachment("data:b", detail=PictureDetail(False)), "What is it?")),
    )
    assert read.params == (
        "messages[1].content[1].image_url",
        "messages[3].content[0].image_url.url",
    )
    assert read.model == "m"
    assert read.options.ignored == ()


def test_the_instruction_of_the_server_precedes_conversations_without_one() -> None:
    reader = BodyReader(SAMPLING, system="Be kind.", most_images=1)

    assert reader.read_chat(chat("Hi")).generation.messages[0] == Message("system", ("Be kind.",))
    own = {"messages": [{"role": "system", "content": "Be rude."}, *chat("Hi")["messages"]]}  # type: ignore[misc]  # a list
    assert [m.text for m in reader.read_chat(own).generation.messages] == ["Be rude.", "Hi"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "<image> x"}, "prompt"),
        ({"prompt": "x", "images": [PICTURE]}, "prompt"),
        ({"prompt": "x", "images": PICTURE}, "images"),
        ({"prompt": "x", "images": [5]}, "images[0]"),
        ({"prompt": "x", "echo": True}, "echo"),
        ({"prompt": "x", "suffix": "y"}, "suffix"),
        ({"prompt": "x", "best_of": 2}, "best_of"),
        ({"prompt": "x", "logprobs": 6}, "logprobs"),
        ({"prompt": "x", "logprobs": True}, "logprobs"),
    ],
)
def test_a_wrong_prompt_is_refused_with_its_path(body: dict[str, Any], param: str) -> None:
    error = refusal(body, is_chat=False)

    assert (error.status, error.param) == (400, param)


def test_probabilities_of_a_choice_of_answers_are_refused() -> None:
    choice = {"choice": ["yes", "no"]}
    error = refusal(chat(logprobs=True, structured_outputs=choice))
    assert (error.code, error.param) == ("unsupported_parameter", "logprobs")


def test_prompts_have_their_pictures_in_place() -> None:
    read = READER.read_completion({"prompt": ["A: <image>B"], "images": ["data:a"]})

    assert read.generation.messages[0].parts == ("A: ", Attachment("data:a"), "B")
    assert read.generation.mode == "complete"
    assert read.generation.sampling.max_new_tokens == 16
    assert read.params == ("images[0]",)


def test_the_header_of_ignored_fields_holds_plain_names_only() -> None:
    assert ignored_header(("a", "b\r\nc: d", "a", "é", "x" * 65)) == "a"
    assert len(ignored_header(tuple(f"name{number}" for number in range(99))).split(", ")) == 20


def test_long_texts_of_users_are_cut_in_messages() -> None:
    error = api_error(PromptError("`a` " + "x" * 5000 + "\x1b[31m\n"), "id")

    body: Any = error.body()["error"]
    assert len(body["message"]) <= 500
    assert json.dumps(body).isprintable()
