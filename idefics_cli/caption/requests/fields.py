"""The fields of a request besides its messages: each is honoured, or refused by its name.

The names are those of OpenAI's chat completions and of vLLM. A field that is null counts as absent.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType

from idefics_cli.config.settings import setting_table
from idefics_cli.core.errors import PromptError
from idefics_cli.core.json_objects import JsonObject, checked_text
from idefics_cli.core.types import Sampling
from idefics_cli.engine.api_fields import LABELS, UNSUPPORTED
from idefics_cli.engine.schema.requested import FORMS

# The maximum is above that of OpenAI (4), so that no request that OpenAI accepts is refused here.
_MOST_STOPS = 16
_MOST_BANNED = 1000

Apply = Callable[[Sampling, str, object], Sampling]
"""Returns the sampling with the value of a field, whose name is the second argument."""


def _setting(name: str, value: object, setting: str) -> object:
    try:
        return setting_table()[setting].check(value)
    except ValueError as error:
        raise PromptError(f"`{name}` {error}") from None


def _as(setting: str) -> Apply:
    def apply(sampling: Sampling, name: str, value: object) -> Sampling:
        changes: dict[str, object] = {setting: _setting(name, value, setting)}
        return replace(sampling, **changes)  # type: ignore[arg-type]  # checked by the table

    return apply


def _top_k(sampling: Sampling, name: str, value: object) -> Sampling:
    # In vLLM, -1 means "keep all tokens". Our value for this is 0.
    return _as("top_k")(sampling, name, 0 if value == -1 else value)


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


HONOURED: Mapping[str, Apply] = MappingProxyType(
    {
        "temperature": _as("temperature"),
        "top_p": _as("top_p"),
        "top_k": _top_k,
        "repetition_penalty": _as("repetition_penalty"),
        "seed": _as("seed"),
        "stop": _stop,
        "max_tokens": _as("max_new_tokens"),
        "max_completion_tokens": _as("max_new_tokens"),
        "max_new_tokens": _as("max_new_tokens"),
    }
)
"""The fields that change an answer: the name of each, and what it does."""

BANNED = "bad_words"
"""The field with words that the answer must not have, of vLLM."""

NEUTRAL: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        **UNSUPPORTED,
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
        elif not any(type(value) is type(one) and value == one for one in _neutral(name, value)):
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


def _neutral(name: str, value: object) -> tuple[object, ...]:
    # JSON may write 0 as 0.0, so a float is also compared with the whole numbers.
    neutral = NEUTRAL[name]
    if type(value) is not float:
        return neutral
    return tuple(float(one) if type(one) is int else one for one in neutral)


@lru_cache(maxsize=4096)
def _misspelt(name: str) -> str | None:
    """Return the honoured field for which *name* is a misspelling; None if it is not one."""
    if len(name) < 6:
        return None
    near = difflib.get_close_matches(name.lower().replace("-", "_"), HONOURED, n=1, cutoff=0.88)
    return near[0] if near else None
