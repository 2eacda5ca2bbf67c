"""Fields of OpenAI's API and of servers like it, as request files and the server read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from idefics_cli.config.settings import setting_table
from idefics_cli.core.errors import PromptError
from idefics_cli.core.json_objects import kind_of
from idefics_cli.core.types import Sampling

# The range of OpenAI's API.
_MOST_PENALTY = 2

LABELS = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier"),
        *("prompt_cache_key", "prompt_cache_retention"),
    }
)
"""Fields of OpenAI that by their definition do not change an answer."""

UNSUPPORTED: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "tools": ([],),
        "functions": ([],),
        "tool_choice": ("none", "auto"),
        "modalities": (["text"],),
        "logit_bias": ({},),
        "min_p": (0,),
        "min_tokens": (0,),
        "num_beams": (1,),
        "length_penalty": (1,),
        "best_of": (1,),
        "skip_special_tokens": (True,),
        "add_generation_prompt": (True,),
        "echo": (False,),
        "suffix": ("",),
        "guided_grammar": (),
    }
)
"""Fields that ask for what no answer has, each with the values that ask for nothing."""

ReadSampling = Callable[[Sampling, str, object], Sampling]
"""Returns the sampling with the value of a field, whose name is the second argument.

It raises a PromptError if the value is wrong.
"""


def checked_setting(setting: str, value: object, name: str) -> object:
    """Return *value* as *setting* takes it.

    Args:
        setting: Name of a setting.
        value: The value of a field.
        name: Name of the field in messages.

    Raises:
        PromptError: If the setting cannot have this value.
    """
    try:
        return setting_table()[setting].check(value)
    except ValueError as error:
        raise PromptError(f"`{name}` {error}") from None


def setting_reader(setting: str) -> ReadSampling:
    """Return the function that reads a field as *setting*."""

    def read(sampling: Sampling, name: str, value: object) -> Sampling:
        changes: dict[str, object] = {setting: checked_setting(setting, value, name)}
        return replace(sampling, **changes)  # type: ignore[arg-type]  # checked by the table

    return read


def _read_top_k(sampling: Sampling, name: str, value: object) -> Sampling:
    # In vLLM, -1 means "keep all tokens". Our value for this is 0.
    return setting_reader("top_k")(sampling, name, 0 if value == -1 else value)


def _read_penalty(sampling: Sampling, name: str, value: object) -> Sampling:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PromptError(f"`{name}` must be a number, not {kind_of(value)}")
    if not -_MOST_PENALTY <= value <= _MOST_PENALTY:
        raise PromptError(f"`{name}` must be from -{_MOST_PENALTY} to {_MOST_PENALTY}")
    changes: dict[str, object] = {name: float(value)}
    return replace(sampling, **changes)  # type: ignore[arg-type]  # both penalties are numbers


def _read_ignore_eos(sampling: Sampling, name: str, value: object) -> Sampling:
    if not isinstance(value, bool):
        raise PromptError(f"`{name}` must be true or false, not {kind_of(value)}")
    return replace(sampling, ignores_end=value)


SAMPLING: Mapping[str, ReadSampling] = MappingProxyType(
    {
        "temperature": setting_reader("temperature"),
        "top_p": setting_reader("top_p"),
        "top_k": _read_top_k,
        "repetition_penalty": setting_reader("repetition_penalty"),
        "presence_penalty": _read_penalty,
        "frequency_penalty": _read_penalty,
        "ignore_eos": _read_ignore_eos,
    }
)
"""The fields that choose tokens, and how each is read."""


def is_neutral(value: object, neutral: Sequence[object]) -> bool:
    """Return whether *value*, from JSON, is one of the values *neutral*; 0.0 counts as 0."""
    # True is equal to 1, and means something else.
    return any(isinstance(one, bool) is isinstance(value, bool) and one == value for one in neutral)
