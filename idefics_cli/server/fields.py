"""The fields of the API: each is honoured, without effect and named so, or refused.

The names are those of OpenAI, and the extensions of vLLM. A field that is null counts as absent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from idefics_cli.core.json_objects import JsonObject, checked_text
from idefics_cli.core.types import Sampling
from idefics_cli.engine.api_fields import (
    LABELS,
    SAMPLING,
    UNSUPPORTED,
    ReadSampling,
    checked_setting,
    is_neutral,
)
from idefics_cli.engine.protocol import Urgency
from idefics_cli.engine.schema.requested import FORMS
from idefics_cli.server.errors import bad_field, unsupported

MOST_REPLIES = 8
SEEDS = 2**63
"""Number of seeds; a seed of a request is taken modulo this number."""

_MOST_STOPS = 4
_MOST_STOP_CHARACTERS = 256
_MOST_BANNED = 100
_MOST_SCHEMA_CHARACTERS = 65_536
_MOST_LOGPROBS = 20
_MOST_SALT_CHARACTERS = 256
_NO_LIMIT = 2**63
_NAME = re.compile(r"[\w.\[\]-]{1,64}", re.ASCII)
_MOST_NAMES = 20


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """How to answer a request, as its fields say.

    Attributes:
        sampling: How tokens are chosen.
        replies: Number of replies.
        streams: Whether the answer is a stream of events.
        includes_usage: Whether the stream ends with the numbers of tokens.
        urgency: How soon it starts.
        tells_logprobs: Whether the answer has the probabilities of its tokens.
        top_logprobs: Number of other tokens for each of these.
        cache_salt: Only requests with the same one use the KV states of each other.
        banned: Words that the reply must not have.
        forms: The fields that ask for a form of the reply.
        ignored: Names of fields without effect.
        unknown: Those of them that no table knows, so that they may be misspelt.
    """

    sampling: Sampling
    replies: int = 1
    streams: bool = False
    includes_usage: bool = False
    urgency: Urgency = "interactive"
    tells_logprobs: bool = False
    top_logprobs: int = 0
    cache_salt: str = ""
    banned: tuple[str, ...] = ()
    forms: Mapping[str, object] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


Apply = Callable[[RequestOptions, str, object], RequestOptions]
"""Returns the options with the value of a field, whose name is the second argument."""


def _of_sampling(read: ReadSampling) -> Apply:
    def apply(options: RequestOptions, name: str, value: object) -> RequestOptions:
        return replace(options, sampling=read(options.sampling, name, value))

    return apply


def _limit(sampling: Sampling, name: str, value: object) -> Sampling:
    number = checked_setting("max_new_tokens", value, name)
    assert isinstance(number, int)
    return replace(sampling, max_new_tokens=min(number, sampling.max_new_tokens))


def _seed(sampling: Sampling, name: str, value: object) -> Sampling:
    if type(value) is not int:
        raise bad_field(name, "must be a whole number")
    return replace(sampling, seed=value % SEEDS)


def _stop(sampling: Sampling, name: str, value: object) -> Sampling:
    values = value if isinstance(value, list) else [value]
    texts = tuple(checked_text(one, name) for one in values)
    if len(texts) > _MOST_STOPS or any(len(text) > _MOST_STOP_CHARACTERS for text in texts):
        raise bad_field(
            name, f"must be at most {_MOST_STOPS} texts of {_MOST_STOP_CHARACTERS} characters"
        )
    if "" in texts:
        raise bad_field(name, "is empty")
    return replace(sampling, stop=texts)


def _replies(options: RequestOptions, name: str, value: object) -> RequestOptions:
    if type(value) is not int or not 1 <= value <= MOST_REPLIES:
        raise bad_field(name, f"must be a whole number from 1 to {MOST_REPLIES}")
    return replace(options, replies=value)


def _truth(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise bad_field(name, "must be true or false")
    return value


def _stream(options: RequestOptions, name: str, value: object) -> RequestOptions:
    return replace(options, streams=_truth(value, name))


def _stream_options(options: RequestOptions, name: str, value: object) -> RequestOptions:
    if not isinstance(value, dict):
        raise bad_field(name, "must be an object")
    includes = value.get("include_usage")
    others = [f"{name}.{key}" for key in value if key != "include_usage"]
    return replace(
        options,
        includes_usage=includes is not None and _truth(includes, f"{name}.include_usage"),
        ignored=(*options.ignored, *others),
    )


def _priority(options: RequestOptions, name: str, value: object) -> RequestOptions:
    if value == "batch":
        return replace(options, urgency="batch")
    # 0 is the usual priority of vLLM.
    if value == "interactive" or (type(value) is int and value == 0):
        return options
    raise bad_field(name, "must be `interactive` or `batch`")


def _logprobs(options: RequestOptions, name: str, value: object) -> RequestOptions:
    return replace(options, tells_logprobs=_truth(value, name))


def _top_logprobs(options: RequestOptions, name: str, value: object) -> RequestOptions:
    if type(value) is not int or not 0 <= value <= _MOST_LOGPROBS:
        raise bad_field(name, f"must be a whole number from 0 to {_MOST_LOGPROBS}")
    return replace(options, top_logprobs=value)


def _cache_salt(options: RequestOptions, name: str, value: object) -> RequestOptions:
    text = checked_text(value, name)
    if len(text) > _MOST_SALT_CHARACTERS:
        raise bad_field(name, f"is longer than {_MOST_SALT_CHARACTERS} characters")
    return replace(options, cache_salt=text)


def _banned(options: RequestOptions, name: str, value: object) -> RequestOptions:
    if not isinstance(value, list) or len(value) > _MOST_BANNED:
        raise bad_field(name, f"must be a list of at most {_MOST_BANNED} words")
    words = (checked_text(one, name) for one in value)
    return replace(options, banned=tuple(dict.fromkeys(word for word in words if word.strip())))


def _form(options: RequestOptions, name: str, value: object) -> RequestOptions:
    if isinstance(value, dict) and value.get("type") == "json_object":
        # The reply is any JSON object.
        value = {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}
    if len(json.dumps(value)) > _MOST_SCHEMA_CHARACTERS:
        raise bad_field(name, f"is longer than {_MOST_SCHEMA_CHARACTERS} characters")
    return replace(options, forms={**options.forms, name: value})


_SAMPLING: Mapping[str, ReadSampling] = {
    **SAMPLING,
    "max_tokens": _limit,
    "max_completion_tokens": _limit,
    "seed": _seed,
    "stop": _stop,
}

HONOURED: Mapping[str, Apply] = MappingProxyType(
    {
        **{name: _of_sampling(read) for name, read in _SAMPLING.items()},
        "n": _replies,
        "stream": _stream,
        "stream_options": _stream_options,
        "priority": _priority,
        "logprobs": _logprobs,
        "top_logprobs": _top_logprobs,
        "cache_salt": _cache_salt,
        "bad_words": _banned,
        **dict.fromkeys(FORMS, _form),
    }
)
"""The fields that change an answer, and what each does."""

WITHOUT_EFFECT = LABELS | {
    *("moderation", "prompt_cache_options", "verbosity", "reasoning_effort"),
    "parallel_tool_calls",
}
"""Fields that change no answer here; `x-idefics-ignored` names those that a request gives."""

REFUSED: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        **UNSUPPORTED,
        "function_call": ("none", "auto"),
        "audio": (),
        "prediction": (),
        "web_search_options": (),
    }
)
"""Fields that ask for what no answer has, each with the values that ask for nothing."""


def read_options(fields: JsonObject, sampling: Sampling) -> RequestOptions:
    """Return how to answer a request with *fields*, which are those that say nothing else.

    Args:
        fields: Names and values.
        sampling: How tokens are chosen if no field says it. Its limit of tokens is used if the
            fields have none.

    Raises:
        ApiError: If a field has a wrong value, or is not supported.
        PromptError: As `ApiError`; its message begins with the name of the field.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    if {"max_tokens", "max_completion_tokens"} & given.keys():
        # Of two limits, the smaller counts; the limit of the server is only a default.
        sampling = replace(sampling, max_new_tokens=_NO_LIMIT)
    options = RequestOptions(sampling)
    ignored: list[str] = []
    for name, value in given.items():
        if (apply := HONOURED.get(name)) is not None:
            options = apply(options, name, value)
        elif name in REFUSED:
            if not _asks_nothing(name, value, given):
                raise unsupported(name)
            if value in ([], {}):
                ignored.append(name)
        else:
            ignored.append(name)
    if options.tells_logprobs:
        sampling = replace(options.sampling, top_logprobs=options.top_logprobs)
        options = replace(options, sampling=sampling)
    elif options.top_logprobs:
        raise bad_field("top_logprobs", "needs `logprobs`, which must be true")
    known = WITHOUT_EFFECT | REFUSED.keys()
    unknown = tuple(name for name in ignored if name not in known)
    return replace(options, ignored=(*options.ignored, *ignored), unknown=unknown)


def ignored_header(names: tuple[str, ...]) -> str:
    """Return the value of `x-idefics-ignored`; names that are not plain words are left out."""
    plain = [name for name in dict.fromkeys(names) if _NAME.fullmatch(name)]
    return ", ".join(plain[:_MOST_NAMES])


def _asks_nothing(name: str, value: object, given: JsonObject) -> bool:
    if name in ("tools", "functions") and given.get("tool_choice") == "none":
        return True
    return is_neutral(value, REFUSED[name])
