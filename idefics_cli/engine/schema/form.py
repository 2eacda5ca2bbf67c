"""The form of replies: a constraint, the columns that it gives, and the text that explains it."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from idefics_cli.core.errors import CutError, InputError, ModelError, UsageError
from idefics_cli.core.types import Completion, Constraint, GenerationRequest
from idefics_cli.core.units import counted
from idefics_cli.engine.schema.bounds import bounded_schema, ends_in_escape
from idefics_cli.engine.schema.choices import choice_constraint, wordings
from idefics_cli.engine.schema.endless import can_end
from idefics_cli.engine.schema.fields import schema_of_fields
from idefics_cli.engine.schema.grammar import check_constraint
from idefics_cli.engine.schema.references import follow_reference
from idefics_cli.engine.schema.text_files import read_text

ColumnKind = Literal["str", "int", "float", "bool", "json"]
JsonValue = str | int | float | bool | None | list["JsonValue"] | dict[str, "JsonValue"]

_SCORES = ("confidence", "mass")
_KINDS: Mapping[str, ColumnKind] = {
    "string": "str",
    "integer": "int",
    "number": "float",
    "boolean": "bool",
}
_IN_WORDS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "array": "list",
    "object": "object",
    "null": "null",
}


@dataclass(frozen=True, slots=True)
class ReplyColumn:
    """A property of the objects that a schema allows.

    Attributes:
        name: The name of the property.
        kind: The type of its values, which may also be null; "json" for lists, objects and values
            of several types.
    """

    name: str
    kind: ColumnKind


@dataclass(frozen=True, slots=True)
class ReplyForm:
    """What replies must be.

    Attributes:
        constraint: What the text of a reply matches.
        columns: The properties of the reply, if it is a JSON object; else empty.
        instruction: A text for the end of the prompt, which tells the model the fields; empty if
            the prompt says nothing of the form.
        separator: What stands between the parts of a reply, each of which is kept once; empty if
            a reply is whole.
    """

    constraint: Constraint
    columns: tuple[ReplyColumn, ...] = ()
    instruction: str = ""
    separator: str = ""

    def applied_to(self, request: GenerationRequest) -> GenerationRequest:
        """Return *request* with the constraint, and the instruction at the end of its last text.

        A raw prompt stays as it is.
        """
        request = replace(request, constraint=self.constraint)
        if not self.instruction or request.mode == "complete":
            return request
        *before, last = request.messages
        last = replace(last, parts=(*last.parts, f"\n{self.instruction}"))
        return replace(request, messages=(*before, last))

    def text_of(self, reply: Completion) -> str:
        """Return the text of *reply*; of a choice, a JSON object with `columns`."""
        if self.separator:
            return self.separator.join(dict.fromkeys(reply.text.split(self.separator)))
        if reply.choice is None:
            return reply.text
        choice, confidence = reply.choice.best
        shares = [share for _, share in reply.choice.probabilities]
        values = (choice, *(round(each, 6) for each in (confidence, reply.choice.mass, *shares)))
        names = (column.name for column in self.columns)
        return json.dumps(dict(zip(names, values, strict=True)), ensure_ascii=False)

    def error_of(self, reply: Completion) -> ModelError | None:
        """Return why *reply* does not have this form; None if it has, or was cancelled."""
        if reply.finish == "length":
            return self.cut_error(reply.new_tokens)
        if self.constraint.kind == "choice" and reply.choice is None:
            return ModelError("the answer has no probabilities")
        if self.constraint.kind != "schema" or reply.finish == "cancelled":
            return None
        try:
            value = parse_reply(reply.text)
        except ValueError as error:
            return ModelError(f"the answer cannot be read as JSON: {error}")
        is_object = isinstance(value, dict) or not self.columns
        return None if is_object else ModelError("the answer is not a JSON object")

    def cut_error(self, tokens: int) -> CutError:
        """Return the error for a reply that was cut after *tokens*."""
        what = "JSON" if self.constraint.kind == "schema" else "text"
        return CutError(
            f"the answer was cut after {counted(tokens, 'token')}, before its {what} was complete",
            hint="`--max-new-tokens` sets the limit",
        )


def reply_fields(text: str, columns: Sequence[ReplyColumn]) -> dict[str, JsonValue]:
    """Return the properties of a complete reply by the names of *columns*; None for an absent one.

    Raises:
        ValueError: If the text is not a JSON object.
    """
    reply = parse_reply(text)
    if not isinstance(reply, dict):
        raise ValueError("not a JSON object")
    return {column.name: reply.get(column.name) for column in columns}


def texts_in(value: JsonValue) -> Iterator[str]:
    """Yield every text in *value*, but not the names of properties."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, str):
            yield each
        elif isinstance(each, list | dict):
            waiting += each.values() if isinstance(each, dict) else each


def schema_form(given: str, *, max_new_tokens: int, explains: bool = True) -> ReplyForm:
    """Return the form of replies that are JSON by a schema.

    Args:
        given: JSON, which begins with `{`; else the path of a file that exists and holds JSON; else
            fields for `schema_of_fields`.
        max_new_tokens: Largest number of tokens of a reply.
        explains: Whether the prompt tells the model the fields.

    Raises:
        UsageError: If the schema cannot be read or used, or llguidance is not installed.
    """
    schema = bounded_schema(_schema(given), max_new_tokens=max_new_tokens)
    if not can_end(schema):
        raise UsageError(
            "no answer that ends can match the schema: a part of it must contain itself",
            hint="leave the property that leads back out of `required`, or allow null",
        )
    constraint = Constraint("schema", json.dumps(schema))
    check_constraint(constraint)
    columns = tuple(
        ReplyColumn(name, _kind(each)) for name, each in _properties(_top(schema)).items()
    )
    return ReplyForm(constraint, columns, _instruction(_top(schema)) if explains else "")


def regex_form(pattern: str) -> ReplyForm:
    """Return the form of replies that match a regular expression as a whole.

    Raises:
        UsageError: If the expression cannot be used, or llguidance is not installed.
    """
    if not pattern:
        raise UsageError("the pattern of the answer is empty", hint=r"`--regex '\d{4}-\d{2}'`")
    if ends_in_escape(pattern):
        raise UsageError(f"the pattern `{pattern}` ends in a lone backslash", hint=r"`\\` is one")
    constraint = Constraint("regex", pattern)
    check_constraint(constraint)
    return ReplyForm(constraint)


def choice_form(choices: Sequence[str]) -> ReplyForm:
    """Return the form of replies that are the likeliest of *choices*.

    Raises:
        UsageError: If there are fewer than two choices, or two that a model words alike.
    """
    choices = [choice.strip() for choice in choices]
    example = "`--choice yes --choice no`"
    if len(choices) < 2:
        raise UsageError("one choice is no choice: give two or more", hint=example)
    known: dict[str, str] = {}
    for choice in choices:
        if not choice:
            raise UsageError("a choice is empty", hint=example)
        for wording in wordings(choice):
            if wording in known:
                raise UsageError(f"the choices `{known[wording]}` and `{choice}` are one")
        known |= dict.fromkeys(wordings(choice), choice)
    names = _distinct("p_" + re.sub(r"\W+", "_", choice).strip("_") for choice in choices)
    columns = (ReplyColumn("choice", "str"), *(ReplyColumn(n, "float") for n in _SCORES + names))
    return ReplyForm(choice_constraint(choices), columns)


def parse_reply(text: str) -> JsonValue:
    """Return the JSON value of a complete reply.

    Raises:
        ValueError: If the text is not JSON, or has a number that is too large for a float: Python
            would read it as infinity, and write `Infinity`, which JSON does not have.
    """
    value: JsonValue = json.loads(text, parse_float=_finite)
    return value


def _schema(given: str) -> Mapping[str, object]:
    text, source = given.strip(), "the schema"
    if not text.startswith("{"):
        if not _is_file(text):
            if text.endswith((".json", ".jsonschema")) or os.sep in text:
                raise InputError(f"cannot read the schema `{text}`: no such file")
            return schema_of_fields(text)
        text, source = read_text(text, "schema"), f"the schema `{text}`"
    try:
        schema = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise UsageError(f"{source} is nested too deeply") from None
    except ValueError as error:
        raise UsageError(f"{source} is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise UsageError(f"{source} is not a JSON object")
    return schema


def _is_file(text: str) -> bool:
    return 0 < len(text) < 1024 and "\0" not in text and os.path.exists(os.path.expanduser(text))


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    """Return *names*, with a number behind each that occurred before."""
    found: list[str] = []
    for name in names:
        number, longer = 1, name
        while longer in found:
            number += 1
            longer = f"{name}_{number}"
        found.append(longer)
    return tuple(found)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large a number")
    return number


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _top(schema: Mapping[str, object]) -> Mapping[str, object]:
    """Return the schema of the whole reply; a `$ref` at the top leads to it."""
    seen = 0
    while isinstance(ref := schema.get("$ref"), str) and "properties" not in schema and seen < 20:
        seen += 1
        found = follow_reference(schema, ref)
        if not isinstance(found, Mapping):
            break
        # The definitions are kept, so that a further `$ref` finds them.
        kept = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        schema = {**kept, **found}
    return schema


def _properties(schema: Mapping[str, object]) -> Mapping[str, object]:
    """Return the properties of an object that has no others; else nothing."""
    found = schema.get("properties")
    is_closed = schema.get("additionalProperties") is False and schema.get("type") == "object"
    return found if is_closed and isinstance(found, Mapping) else {}


def _types(schema: object) -> list[str]:
    """Return the types that *schema* names, by its enum or constant if it has one."""
    if not isinstance(schema, Mapping):
        return []
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(values, list):
        return list(dict.fromkeys(map(_type_of, values)))
    found = schema.get("type", [])
    return [str(each) for each in (found if isinstance(found, list) else [found])]


def _type_of(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    kinds = ((str, "string"), (int, "integer"), (float, "number"), (list, "array"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "object")


def _kind(schema: object) -> ColumnKind:
    types = [each for each in _types(schema) if each != "null"]
    if set(types) == {"integer", "number"}:
        types = ["number"]
    kind = _KINDS.get(types[0], "json") if len(types) == 1 else "json"
    # Larger numbers do not fit into columns of 64 bits.
    if kind == "int" and isinstance(schema, Mapping):
        values = (*_list(schema.get("enum")), *(schema.get(end) for end in ("minimum", "maximum")))
        if any(isinstance(value, int | float) and abs(value) >= 2**63 for value in values):
            return "json"
    return kind


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _instruction(schema: Mapping[str, object]) -> str:
    properties = schema.get("properties")
    if not isinstance(properties, Mapping) or not properties:
        return "Answer as JSON."
    lines = [f"- {name}{_explained(each)}" for name, each in properties.items()]
    return "\n".join(("Answer as JSON with these fields:", *lines))


def _explained(schema: object) -> str:
    if not isinstance(schema, Mapping):
        return ""
    words, description = _words(schema), schema.get("description")
    about = f": {' '.join(description.split())}" if isinstance(description, str) else ""
    return f" ({words}){about}" if words else about


def _words(schema: Mapping[str, object]) -> str:
    """Return the values that *schema* allows in words, such as `list of text`."""
    if choices := _list(schema.get("enum")):
        return f"one of {', '.join(map(_plain, choices))}"
    items = schema.get("items")
    inner = _words(items) if isinstance(items, Mapping) else ""
    types = [_IN_WORDS.get(each, each) for each in _types(schema)]
    return " or ".join(f"list of {inner}" if each == "list" and inner else each for each in types)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
