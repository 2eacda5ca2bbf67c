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
    default_tokens: int,
) -> ReplyForm | None:
    """Return the form of replies; None if replies are free text. No model is needed.

    Args:
        invocation: The call, with its settings.
        schema: The option `--schema`.
        regex: The option `--regex`.
        choices: The values of the option `--choice`.
        default_tokens: Limit of generated tokens if the user set none.

    Raises:
        UsageError: If several of them are given, or one cannot be used.
    """
    options = {"--schema": schema, "--regex": regex, "--choice": choices or None}
    given = [flag for flag, value in options.items() if value is not None]
    if not given:
        return None
    if len(given) > 1:
        raise UsageError(f"{given[0]} and {given[1]} exclude each other")
    from idefics_cli.engine.schema.form import choice_form, regex_form, schema_form

    if choices:
        return choice_form(choices)
    if regex is not None:
        return regex_form(regex)
    settings = invocation.settings
    return schema_form(
        schema or "",
        max_new_tokens=settings.max_new_tokens or default_tokens,
        explains=settings.schema_prompt,
    )
