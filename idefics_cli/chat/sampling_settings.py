"""The settings that a conversation can have: sampling, pictures and display."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from idefics_cli.config.setting import Setting
from idefics_cli.config.settings import setting_table
from idefics_cli.core.types import Sampling

SAMPLING_KEYS = (
    "temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens", "seed",
)  # fmt: skip
DETAIL_KEYS = ("splitting", "longest_edge")
"""The settings that say how much detail of its pictures the model sees."""
DISPLAY_KEYS = ("plain", "preview")
_MOST = 1e300  # a larger number was never a setting
SCHEMA_KEY = "schema"
"""The key of the schema of answers, as the user gave it or as JSON."""


def with_settings(sampling: Sampling, settings: Mapping[str, object]) -> Sampling:
    """Return *sampling* with those values of *settings* that are fields of `Sampling`."""
    chosen = {
        key: value for key, value in settings.items() if key in SAMPLING_KEYS and value is not None
    }
    return replace(sampling, **chosen)  # type: ignore[arg-type]  # the table checked each


def check_setting(key: str, value: object) -> str | int | float | bool | None:
    """Return *value* if the setting *key* of a saved conversation can have it.

    A key that this version does not know can have any text, number, truth value or None. Earlier
    versions took more numbers for sampling; the nearest one that is allowed now replaces such a
    number, so that no conversation becomes unreadable.

    Raises:
        TypeError: If the value is not a text, a number, a truth value or None.
        ValueError: If the setting cannot have this value.
    """
    if value is None or key not in (*SAMPLING_KEYS, *DETAIL_KEYS, *DISPLAY_KEYS):
        if value is not None and not isinstance(value, str | int | float):
            raise TypeError("not the value of a setting")
        return value
    row = setting_table()[key]
    try:
        return row.check(_allowed_now(value, row) if key in SAMPLING_KEYS else value)
    except OverflowError as error:  # a whole number that no float can hold
        raise ValueError("too large") from error


def _allowed_now(value: object, row: Setting) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MOST:
        return value
    if row.maximum is not None and value > row.maximum:
        return row.kind(row.maximum)
    if row.minimum is not None and value < row.minimum:
        return row.kind(row.minimum)
    return value


def parse_setting(key: str, text: str) -> str | int | float | bool | None:
    """Return *text* as a value of the setting *key*.

    Raises:
        ValueError: If the setting cannot have this value. The message is the end of a sentence
            that begins with the key.
    """
    value = setting_table()[key].parse(text)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"must be a number, not `{text}`")
    return value
