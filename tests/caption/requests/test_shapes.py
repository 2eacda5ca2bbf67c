"""Rows of every shape become the requests that they mean; wrong ones name their field."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from idefics_cli.caption.requests.row import decode_row
from idefics_cli.caption.requests.shapes import Defaults, Request, request_of
from idefics_cli.core.errors import PromptError
from idefics_cli.core.types import Attachment, GenerationRequest, Message, PictureDetail, Sampling

DATA = "data:image/png;base64,AAAA"
HELLO = Message("user", ("Hello!",))
BASE = Defaults(chats=False)


def in_data(path: str) -> str:
    return os.path.join("data", path)


def asked(row: Any, defaults: Defaults | None = None) -> Request:
    text = row if isinstance(row, str) else json.dumps(row)
    return request_of(decode_row(text.encode()), defaults or Defaults(), in_data)


def request(row: Any, defaults: Defaults | None = None) -> GenerationRequest:
    return asked(row, defaults).generation


def line(_url: str = "/v1/chat/completions", /, **body: Any) -> dict[str, object]:
    return {"custom_id": "a", "method": "POST", "url": _url, "body": body}


def error_of(row: Any, defaults: Defaults | None = None) -> str:
    with pytest.raises(PromptError) as info:
        asked(row, defaults)
    return str(info.value)


A, B = Attachment("data/a.jpg"), Attachment("data/b.jpg")
USER_A = Message("user", (A, "What is it?"))


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"prompt": "Hello!"}, (HELLO,)),
        ({"question": "Hello!", "prompt": None}, (HELLO,)),
        ({"prompt": "What is it?", "image": "a.jpg"}, (USER_A,)),
        ({"prompt": "What is it?", "file_name": "a.jpg"}, (USER_A,)),
        ({"prompt": "What is it?", "images": [{"path": "a.jpg"}]}, (USER_A,)),
        (
            {"prompt": "Compare.", "images": ["a.jpg", "b.jpg"]},
            (Message("user", (A, B, "Compare.")),),
        ),
        (
            {"prompt": "First <image>, then <image>.", "images": ["a.jpg", "b.jpg"]},
            (Message("user", ("First ", A, ", then ", B, ".")),),
        ),
        ({"prompt": "What is it?", "video": "a.jpg"}, (USER_A,)),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "video", "path": "a.jpg"},
                            {"type": "text", "text": "What is it?"},
                        ],
                    }
                ]
            },
            (USER_A,),
        ),
        ({"prompt": "Hello!", "system": "Be brief."}, (Message("system", ("Be brief.",)), HELLO)),
        (line(messages=[{"role": "user", "content": "Hello!"}]), (HELLO,)),
        (
            line(
                messages=[
                    {"role": "developer", "content": "Be brief."},
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "What is it?"},
                            {"type": "image_url", "image_url": {"url": DATA, "detail": "low"}},
                        ],
                    },
                ]
            ),
            (
                Message("system", ("Be brief.",)),
                Message("user", ("What is it?", Attachment(DATA, detail=PictureDetail(False)))),
            ),
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image"}, "What is it?"]},
                    {"role": "assistant", "content": "A cat.", "tool_calls": None},
                    {"role": "user", "content": "Hello!"},
                ],
                "images": ["a.jpg"],
            },
            (USER_A, Message("assistant", ("A cat.",)), HELLO),
        ),
        (
            {
                "image": "a.jpg",
                "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}],
            },
            (USER_A,),
        ),
        (
            {
                "image": "a.jpg",
                "conversations": [{"from": "human", "value": "What is it?\n<image>"}],
            },
            (Message("user", ("What is it?", A)),),
        ),
        (
            {
                "conversations": [
                    {"from": "system", "value": "Be brief."},
                    {"from": "human", "value": "Hello!"},
                    {"from": "gpt", "value": "Hi."},
                    {"from": "human", "value": "Hello!"},
                ]
            },
            (Message("system", ("Be brief.",)), HELLO, Message("assistant", ("Hi.",)), HELLO),
        ),
    ],
)
def test_a_row_of_any_shape_is_the_conversation_that_it_means(
    row: Any, messages: tuple[Message, ...]
) -> None:
    assert request(row).messages == messages
    assert request(row).mode == "chat"


def test_only_files_are_looked_for_in_the_folder_of_pictures() -> None:
    row = {"prompt": "Compare.", "images": ["a.jpg", DATA, "https://example.com/b.jpg"]}

    assert [a.source for a in request(row).attachments] == ["data/a.jpg", *row["images"][1:]]
    assert dict(asked(row).names) == {"data/a.jpg": "a.jpg"}


def test_a_base_model_completes_prompts_as_the_model_card_writes_them() -> None:
    completion = line("/v1/completions", prompt="Once upon a time", images=None)
    placed = {"prompt": "A <image> and", "image": "a.jpg"}
    assert request(completion, BASE).messages == (Message("user", ("Once upon a time",)),)
    assert request(placed, BASE).messages == (Message("user", ("A ", A, " and")),)
    first = request({"prompt": "In this image,", "image": "a.jpg"}, BASE)
    assert first.messages == (Message("user", (A, " In this image,")),)
    assert {request(r, BASE).mode for r in (completion, placed)} == {"complete"}
    assert "base model" in error_of({"messages": [{"role": "user", "content": "Hi"}]}, BASE)


def test_a_completion_line_is_raw_for_a_model_that_chats_too() -> None:
    assert request(line("/v1/completions", prompt=["Once"])).mode == "complete"


def test_fields_of_a_row_win_over_the_options() -> None:
    defaults = Defaults(Sampling(temperature=0.5, seed=3, max_new_tokens=50), system="Be brief.")
    fields = {"temperature": 0, "top_p": 0.5, "top_k": -1, "max_completion_tokens": 9, "seed": 7}
    messages = [{"role": "user", "content": "Hello!"}]
    expected = Sampling(temperature=0.0, top_p=0.5, top_k=0, max_new_tokens=9, seed=7)
    for row in (line(messages=messages, **fields), {"prompt": "Hello!", **fields}):
        assert request(row, defaults).sampling == expected
        assert request(row, defaults).messages[0] == Message("system", ("Be brief.",))
    assert request({"prompt": "Hello!"}, defaults).sampling == defaults.sampling


def test_a_row_may_stop_its_answer_at_texts() -> None:
    for value, stops in (("\n", ("\n",)), (["a", "b"], ("a", "b")), ([], ()), (None, ())):
        row = line(messages=[{"role": "user", "content": "Hello!"}], stop=value)
        assert request(row).sampling.stop == request({"prompt": "Hi", "stop": value}).sampling.stop
        assert request(row).sampling.stop == stops


def test_neutral_values_and_labels_change_nothing() -> None:
    body = {"n": 1, "stream": False, "user": "u", "logit_bias": {}, "presence_penalty": 0.0}
    row = line(messages=[{"role": "user", "content": "Hello!"}], **body, metadata={"a": 1})
    assert request(row).sampling == Sampling()


def test_other_columns_of_a_prompt_are_the_users_own() -> None:
    row = {"prompt": "Hello!", "number": 3, "end": "x", "id": [1], "label": None, "n": 1}
    assert request(row) == request({"prompt": "Hello!"})


def test_a_row_bans_words_beside_those_of_the_option() -> None:
    row = {"prompt": "Hello!", "bad_words": ["red", "blue", "red", ""]}
    assert request(row, Defaults(banned=("large",))).banned == ("large", "red", "blue")
    assert request(line(messages=[USER], bad_words=["red"])).banned == ("red",)


def test_a_prompt_with_names_of_a_batch_is_a_prompt() -> None:
    row = {"custom_id": "a", "url": "https://example.com/a.jpg", "body": "text", "prompt": "Hi"}
    assert request(row).messages[0].parts[1:] == ("Hi",)


def test_the_model_of_a_row_is_known_if_it_is_another_one() -> None:
    defaults = Defaults(models=frozenset({"demo"}))
    assert asked({"prompt": "Hello!", "model": "gpt-x"}, defaults).model == "gpt-x"
    assert asked({"prompt": "Hello!", "model": "demo"}, defaults).model is None


USER = {"role": "user", "content": "Hi"}
DEEP = '{"prompt": "Hi", "x": ' + "[" * 200 + "]" * 200 + "}"
WRONG: list[tuple[Any, str]] = [
    ("{bad", "not valid JSON: Expecting property name enclosed in double quotes, column 2"),
    ('{"prompt": "Hi", "prompt": "Ho"}', "not valid JSON: `prompt` is given twice"),
    ('{"prompt": "Hi", "temperature": NaN}', "`temperature` is NaN, which is not a JSON number"),
    ('{"body": {"x": [1, -1e999]}}', "`body.x[1]` is -1e999, which is not a JSON number"),
    (DEEP, "not valid JSON: it is nested deeper than 100 levels"),
    ('{"a":' * 100_000, "not valid JSON: it is nested deeper than 100 levels"),
    ("[1]", "not a JSON object"),
    ({}, "no prompt"),
    ({"image": "a", "promt": "Hi"}, "no prompt, but `promt`"),
    ({"message": [USER]}, "no prompt, but `message`"),
    ({"text": "Hi"}, "no prompt"),
    ({"prompt": "  "}, "`prompt` is empty"),
    ({"prompt": 5}, "`prompt` is not text but a number"),
    ({"prompt": "x" * 4_000_001}, "`prompt` is longer than 4,000,000 characters"),
    ('{"prompt": "\\ud800"}', "`prompt` holds half of a character"),
    ({"prompt": "Hi", "temperature": "hot"}, "`temperature` must be a number, not `hot`"),
    ({"prompt": "Hi", "temperature": True}, "`temperature` must be a number, not `true`"),
    ({"prompt": "Hi", "max_tokens": 0}, "`max_tokens` must be 1 or more, not `0`"),
    ({"prompt": "Hi", "bad_words": "a"}, "`bad_words` is not a list of at most 1000 words"),
    ({"prompt": "Hi", "bad_words": [1]}, "`bad_words[0]` is not text but a number"),
    ({"prompt": "Hi", "stop": ""}, "`stop` is empty"),
    ({"prompt": "Hi", "stop": ["a", 5]}, "`stop[1]` is not text but a number"),
    ({"prompt": "Hi", "stop": ["a"] * 17}, "`stop` has more than 16 texts"),
    ({"prompt": "Hi", "max_token": 5}, "unknown field `max_token`"),
    ({"prompt": "Hi", "reply": "x"}, "`reply` is a column of answers"),
    ({"prompt": "Hi", "images": [None]}, "`images[0]` does not name a picture: it is null"),
    ({"prompt": "Hi", "images": [["a.jpg"]]}, "`images[0]` does not name a picture: it is a list"),
    ({"prompt": "Hi", "image": {"a": 1}}, "`image` does not name a picture"),
    ({"prompt": "Hi", "image": "-"}, "`image` is `-`, and a row names files, addresses and "
     "`data:` URIs"),
    ({"prompt": "Hi", "image": "a", "images": ["b"]}, "both `images` and `image` are given"),
    ({"prompt": "<image> <image>", "image": "a"},
     "the text has 2 `<image>`, and the columns of the row have 1 picture"),
    ({"prompt": "<image>"}, "the text has 1 `<image>`, and the columns of the row have 0 pictures"),
    ({"messages": "Hi"}, "`messages` is not a list of messages"),
    ({"messages": []}, "`messages` is not a list of messages"),
    ({"messages": ["Hi"]}, "`messages[0]` is not a message but text"),
    ({"messages": [{"role": "tool", "content": "x"}, USER]}, "`messages[0].role` is `tool`"),
    ({"messages": [{"content": "x"}]}, "`messages[0].role` is null"),
    ({"messages": [{"role": "user"}]}, "`messages[0].content` is neither text nor a list of "
     "parts but null"),
    ({"messages": [{"role": "user", "content": [3]}]}, "`messages[0].content[0]` is not a part "
     "but a number"),
    ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
     "`messages[0].content[0].type` is `audio`"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]},
     "`messages[0].content[0].text` is not text but a number"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": 3}]}]},
     "`messages[0].content[0].image_url` does not name a picture: it is a number"),
    ({"messages": [{"role": "user", "content": " "}]}, "the last message of `messages` has no "
     "text"),
    ({"messages": [USER, {"role": "assistant", "content": "Hi"}]},
     "`messages` ends with a message of the assistant, not with a question"),
    ({"messages": [{**USER, "audio": "x"}]}, "unknown field `messages[0].audio`"),
    ({"messages": [USER], "n": 2}, "`n` is not supported"),
    ({"prompt": "x", "n": 2}, "`n` is not supported"),
    ({"question": "x", "image": "a.png", "best_of": 3}, "`best_of` is not supported"),
    ({"prompt": "x", "guided_grammar": "a"}, "`guided_grammar` is not supported"),
    ({"prompt": "x", "min_tokens": 5}, "`min_tokens` is not supported"),
    ({"prompt": "x", "extra_body": {"a": 1}}, "`extra_body` is not supported"),
    ({"prompt": "x", "presence_penalty": 3}, "`presence_penalty` must be from -2 to 2"),
    ({"prompt": "x", "logprobs": 2}, "`logprobs` is not supported"),
    ({"messages": [USER], "logprobs": True}, "`logprobs` is not supported"),
    ({"messages": [USER], "tools": [{}]}, "`tools` is not supported"),
    (line(messages=[USER], n=2), "`n` is not supported"),
    (line(messages=[USER], colour="red"), "unknown field `colour`"),
    (line("/v1/embeddings", input="x"), "`url` is `/v1/embeddings`"),
    ({**line(messages=[USER]), "method": "GET"}, "`method` is not POST"),
    ({**line(messages=[USER]), "custom_id": 5}, "`custom_id` is not text but a number"),
    ({"custom_id": "a", "url": "/v1/chat/completions"}, "`body` is not an object but null"),
    ({"custom_id": "a", "body": {"prompt": "x"}, "url": 5}, "`url` is a number"),
    ({**line(), "body": [1]}, "`body` is not an object but a list"),
    ({**line(messages=[USER]), "x": 1}, "unknown field `x` beside `body`"),
    (line("/v1/completions", prompt=["a", "b"]), "`prompt` is not text but a list"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "message"), WRONG, ids=[message[:50] for _, message in WRONG])
def test_a_wrong_row_is_refused_by_the_name_of_its_field(row: Any, message: str) -> None:
    assert error_of(row) == message


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("promt", "did you mean `prompt`?"),
        ("Message", "did you mean `messages`?"),
        ("text", "a row has `prompt` or `messages`, or is a line of an OpenAI batch"),
    ],
)
def test_the_hint_of_a_row_without_a_prompt_has_the_nearest_name(name: str, hint: str) -> None:
    with pytest.raises(PromptError) as info:
        asked({"image": "a", name: "Hi"})
    assert info.value.hint == hint


@pytest.mark.parametrize(
    "text", [b"\xff{}", b'{"prompt": 1' + b"0" * 5000 + b"}", b"", b"null", b'"x"']
)
def test_bytes_that_are_no_row_are_refused(text: bytes) -> None:
    with pytest.raises(PromptError, match=r"UTF-8|not valid JSON|not a JSON object"):
        decode_row(text)
