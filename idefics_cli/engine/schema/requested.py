"""The form of an answer that a request asks for: JSON by a schema, a pattern, or choices."""

from __future__ import annotations

import json
from functools import lru_cache

from idefics_cli.core.errors import PromptError, UsageError
from idefics_cli.core.json_objects import JsonObject, checked_text, kind_of
from idefics_cli.core.types import ConstraintKind
from idefics_cli.engine.schema.form import ReplyForm, choice_form, regex_form, schema_form

FORMS = (
    *("response_format", "structured_outputs"),
    *("guided_json", "guided_regex", "guided_choice"),
)
"""The fields that ask for a form of the answer, of OpenAI and of vLLM."""

_Wanted = tuple[str, ConstraintKind, str]
"""Name of the field, and kind and text of the constraint."""


def form_of(fields: JsonObject, *, max_new_tokens: int) -> ReplyForm | None:
    """Return the form that the *fields* of a request ask for; None if they ask for none.

    Args:
        fields: Fields of a request; those of `FORMS` count.
        max_new_tokens: Largest number of tokens of the reply.

    Raises:
        PromptError: If a field is wrong, or asks for what is not supported.
        UsageError: If the package for constraints is not installed.
    """
    wanted = _all_wanted(fields)
    if not wanted:
        return None
    if len(wanted) > 1:
        raise PromptError(f"`{wanted[0][0]}` and `{wanted[1][0]}` exclude each other")
    name, kind, text = wanted[0]
    try:
        return _form(kind, text, max_new_tokens)
    except UsageError as error:
        raise PromptError(f"`{name}`: {error}", hint=error.hint) from error


def wanted_kind(fields: JsonObject) -> ConstraintKind | None:
    """Return the kind of form that *fields* of a valid request ask for; None without a form."""
    wanted = _all_wanted(fields)
    return wanted[0][1] if wanted else None


def _all_wanted(fields: JsonObject) -> list[_Wanted]:
    return [one for name in FORMS if (one := _wanted(name, fields.get(name))) is not None]


# A file of requests often has one schema for all of them.
@lru_cache(maxsize=64)
def _form(kind: ConstraintKind, text: str, max_new_tokens: int) -> ReplyForm:
    if kind == "regex":
        return regex_form(text)
    if kind == "choice":
        return choice_form(json.loads(text))
    return schema_form(text, max_new_tokens=max_new_tokens, explains=False)


def _wanted(name: str, value: object) -> _Wanted | None:
    """Return what the field *name* asks for; None if it asks for nothing."""
    if value is None:
        return None
    if name == "guided_json":
        return _schema(name, value)
    if name == "guided_regex":
        return name, "regex", checked_text(value, name)
    if name == "guided_choice":
        return _choices(name, value)
    if not isinstance(value, dict):
        raise PromptError(f"`{name}` is not an object but {kind_of(value)}")
    if name == "response_format":
        return _response_format(name, value)
    given = {key: one for key, one in value.items() if one is not None}
    if len(given) != 1 or not given.keys() <= {"json", "regex", "choice"}:
        hint = "it has `json`, `regex` or `choice`"
        raise PromptError(f"`{name}` is not supported", hint=hint)
    if "json" in given:
        return _schema(f"{name}.json", given["json"])
    if "choice" in given:
        return _choices(f"{name}.choice", given["choice"])
    return name, "regex", checked_text(given["regex"], f"{name}.regex")


def _choices(name: str, value: object) -> _Wanted:
    if not isinstance(value, list):
        raise PromptError(f"`{name}` is not a list but {kind_of(value)}")
    return name, "choice", json.dumps([checked_text(one, name) for one in value])


def _response_format(name: str, value: JsonObject) -> _Wanted | None:
    if value.get("type") == "text":
        return None
    if value.get("type") != "json_schema":
        raise PromptError(
            f"`{name}.type` is not supported", hint="the types are `text` and `json_schema`"
        )
    inner = value.get("json_schema")
    if not isinstance(inner, dict):
        raise PromptError(f"`{name}.json_schema` is not an object but {kind_of(inner)}")
    return _schema(f"{name}.json_schema.schema", inner.get("schema"))


def _schema(name: str, value: object) -> _Wanted:
    if isinstance(value, str):  # vLLM takes the text of a schema, too
        if not value.lstrip().startswith("{"):
            raise PromptError(f"`{name}` is not a JSON Schema")
        return name, "schema", checked_text(value, name)
    if not isinstance(value, dict):
        raise PromptError(f"`{name}` is not a JSON Schema but {kind_of(value)}")
    return name, "schema", json.dumps(value)
