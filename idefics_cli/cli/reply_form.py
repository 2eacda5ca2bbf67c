"""The form of replies that the options of a command choose."""

from __future__ import annotations

from typing import TYPE_CHECKING

from idefics_cli.cli.invocation import Invocation
from idefics_cli.core.errors import UsageError

if TYPE_CHECKING:
    from idefics_cli.engine.schema.form import ReplyForm


def chosen_form(
    invocation: Invocation, *, schema: str | None, regex: str | None, default_tokens: int
) -> ReplyForm | None:
    """Return the form of replies; None if replies are free text. No model is needed.

    Args:
        invocation: The call, with its settings.
        schema: The option `--schema`.
        regex: The option `--regex`.
        default_tokens: Limit of generated tokens if the user set none.

    Raises:
        UsageError: If both are given, or one cannot be used.
    """
    if schema is None and regex is None:
        return None
    if schema is not None and regex is not None:
        raise UsageError(
            "--schema and --regex exclude each other", hint='a schema has `"pattern"` for texts'
        )
    from idefics_cli.engine.schema.form import regex_form, schema_form

    if regex is not None:
        return regex_form(regex)
    settings = invocation.settings
    return schema_form(
        schema or "",
        max_new_tokens=settings.max_new_tokens or default_tokens,
        explains=settings.schema_prompt,
    )
