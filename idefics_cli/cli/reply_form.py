"""The form of replies that the options of a command choose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from idefics_cli.cli.invocation import Invocation
from idefics_cli.core.errors import UsageError

if TYPE_CHECKING:
    from idefics_cli.engine.schema.form import ReplyForm


def chosen_form(
    invocation: Invocation,
    *,
    schema: str | None,
    regex: str | None,
    choices: Sequence[str] | None = None,
    tags: str | None = None,
    default_tokens: int,
) -> ReplyForm | None:
    """Return the form of replies; None if replies are free text. No model is needed.

    Args:
        invocation: The call, with its settings.
        schema: The option `--schema`.
        regex: The option `--regex`.
        choices: The values of the option `--choice`.
        tags: The option `--tags`.
        default_tokens: Limit of generated tokens if the user set none.

    Raises:
        UsageError: If several of them are given, or one cannot be used.
    """
    options = {"--schema": schema, "--regex": regex, "--choice": choices or None, "--tags": tags}
    given = [flag for flag, value in options.items() if value is not None]
    if not given:
        return None
    if len(given) > 1:
        raise UsageError(f"{given[0]} and {given[1]} exclude each other")
    limit = invocation.settings.max_new_tokens or default_tokens
    return _form(schema, regex, choices, tags, limit, explains=invocation.settings.schema_prompt)


def _form(
    schema: str | None,
    regex: str | None,
    choices: Sequence[str] | None,
    tags: str | None,
    max_new_tokens: int,
    *,
    explains: bool,
) -> ReplyForm:
    from idefics_cli.engine.schema.form import choice_form, regex_form, schema_form
    from idefics_cli.engine.schema.tags import tags_form

    if choices:
        return choice_form(choices)
    if regex is not None:
        return regex_form(regex)
    if tags is not None:
        return tags_form(tags, explains=explains)
    return schema_form(schema or "", max_new_tokens=max_new_tokens, explains=explains)
