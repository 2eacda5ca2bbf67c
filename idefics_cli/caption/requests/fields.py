"""The fields of a request besides its messages: each is honoured, or refused by its name.

The names are those of OpenAI's chat completions and of vLLM. A field that is null counts as absent.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType

from idefics_cli.core.errors import PromptError
from idefics_cli.core.json_objects import JsonObject, checked_text
from idefics_cli.core.types import Sampling
from idefics_cli.engine.api_fields import (
    LABELS,
    SAMPLING,
    UNSUPPORTED,
    ReadSampling,
    is_neutral,
    setting_reader,
)
from idefics_cli.engine.schema.requested import FORMS

# The maximum is above that of OpenAI (4), so that no request that OpenAI accepts is refused here.
_MOST_STOPS = 16
_MOST_BANNED = 1000


def _stop(sampling: Sampling, name: str, value: object) -> Sampling:
    values = value if isinstance(value, list) else [value]
    texts = tuple(
        checked_text(one, f"{name}[{at}]" if values is value else name)
        for at, one in enumerate(values)
    )
    if "" in texts:
        raise PromptError(f"`{name}` is empty")
    if len(texts) > _MOST_STOPS:
        raise PromptError(f"`{name}` has more than {_MOST_STOPS} texts")
    return replace(sampling, stop=texts)


_read_limit = setting_reader("max_new_tokens")

HONOURED: Mapping[str, ReadSampling] = MappingProxyType(
    {
        **SAMPLING,
        "seed": setting_reader("seed"),
        "stop": _stop,
        "max_tokens": _read_limit,
        "max_completion_tokens": _read_limit,
        "max_new_tokens": _read_limit,
    }
)
"""The fields that change an answer: the name of each, and what it does."""

BANNED = "bad_words"
"""The field with words that the answer must not have, of vLLM."""

NEUTRAL: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        **UNSUPPORTED,
        "logprobs": (False,),
        "top_logprobs": (0,),
        "n": (1,),
        "stream": (False,),
        "stream_options": (),
        "extra_body": ({},),
        "parallel_tool_calls": (True, False),
    }
)
"""Fields with the values that ask for nothing special; any other value is refused."""

_HINTS = {
    "n": "write the request several times, each with another `seed`",
    "stream": "an answer row holds the whole reply",
}


def is_setting(name: str) -> bool:
    """Whether *name* is a field that changes an answer, and not a column of the user's own.

    Raises:
        PromptError: If it is nearly the name of a field that changes an answer.
    """
    if name in HONOURED or name in FORMS or name == BANNED:
        return True
    if (near := _misspelt(name)) is not None:
        raise PromptError(f"unknown field `{name}`", hint=f"did you mean `{near}`?")
    return False


def sampling_of(fields: JsonObject, defaults: Sampling) -> Sampling:
    """Return the sampling of a request.

    Args:
        fields: Fields of `HONOURED` and `NEUTRAL`. Of several limits of tokens, the least counts.
        defaults: The sampling of a request without fields.

    Raises:
        PromptError: If a field has a wrong value, or one that is not honoured.
    """
    sampling, limits = defaults, []
    for name, value in fields.items():
        if value is None:
            continue
        if (apply := HONOURED.get(name)) is not None:
            sampling = apply(sampling, name, value)
            if name.startswith("max_"):
                limits.append(sampling.max_new_tokens)
        elif not is_neutral(value, NEUTRAL[name]):
            raise PromptError(f"`{name}` is not supported", hint=_HINTS.get(name, "leave it out"))
    return replace(sampling, max_new_tokens=min(limits)) if limits else sampling


def banned_of(fields: JsonObject) -> tuple[str, ...]:
    """Return the words that the answer to a request with *fields* must not have.

    Raises:
        PromptError: If the field is not a list of words.
    """
    value = fields.get(BANNED)
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > _MOST_BANNED:
        raise PromptError(f"`{BANNED}` is not a list of at most {_MOST_BANNED} words")
    words = (checked_text(one, f"{BANNED}[{at}]") for at, one in enumerate(value))
    return tuple(dict.fromkeys(word for word in words if word.strip()))


def check_known(names: JsonObject, known: frozenset[str]) -> None:
    """Check that each of *names* is a field, one of *known*, or null.

    Raises:
        PromptError: If a name is none of them.
    """
    for name, value in names.items():
        if value is None or name in known | LABELS | NEUTRAL.keys() or is_setting(name):
            continue
        raise PromptError(f"unknown field `{name}`", hint="leave it out, or correct its name")


@lru_cache(maxsize=4096)
def _misspelt(name: str) -> str | None:
    """Return the honoured field for which *name* is a misspelling; None if it is not one."""
    if len(name) < 6:
        return None
    near = difflib.get_close_matches(name.lower().replace("-", "_"), HONOURED, n=1, cutoff=0.88)
    return near[0] if near else None
