"""Rows of a file of requests: JSON objects, read strictly."""

from __future__ import annotations

from idefics_cli.core.json_objects import JsonObject, decode_object

PROMPTS = ("prompt", "question")
CONVERSATIONS = ("messages", "conversations")
"""The keys of which a request outside of an OpenAI batch has one."""


def decode_row(text: bytes) -> JsonObject:
    """Return the object that *text* holds.

    Raises:
        PromptError: If it is not a JSON object in UTF-8, or gives a key twice.
    """
    return decode_object(
        text,
        syntax_hint="a row is one JSON object on one line",
        shape_hint='a row looks like {"prompt": "What is it?", "image": "a.jpg"}',
    )


def is_line(row: JsonObject) -> bool:
    """Whether *row* is meant as a line of an OpenAI batch, even if it is a wrong one.

    In a row with a prompt of its own, these names are columns of the user, unless `body` is an
    object.
    """
    if sum(name in row for name in ("custom_id", "url", "body")) < 2:
        return False
    has_prompt = any(row.get(name) is not None for name in (*PROMPTS, *CONVERSATIONS))
    return isinstance(row.get("body"), dict) or not has_prompt
