"""The shapes of rows: the keys of a row say what it is, and how it becomes a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import Literal

from idefics_cli.caption.requests.fields import (
    BANNED,
    NEUTRAL,
    banned_of,
    check_known,
    is_setting,
    sampling_of,
)
from idefics_cli.caption.requests.messages import conversation
from idefics_cli.caption.requests.row import CONVERSATIONS, PROMPTS, is_line
from idefics_cli.core.conversation.pictures import (
    COLUMNS,
    Resolve,
    RowPictures,
    placed,
    text_of,
)
from idefics_cli.core.errors import PromptError
from idefics_cli.core.json_objects import JsonObject, checked_text, kind_of
from idefics_cli.core.text import abbreviated
from idefics_cli.core.types import Attachment, GenerationRequest, Message, Mode, Part, Sampling
from idefics_cli.engine.api_fields import LABELS
from idefics_cli.engine.schema.form import ReplyForm
from idefics_cli.engine.schema.requested import FORMS, form_of
from idefics_cli.models.families.raw_prompt import raw_parts
from idefics_cli.models.families.spec import IMAGE_TOKEN

Shape = Literal["chat line", "completion line", "messages", "prompt"]
"""The shapes: lines of an OpenAI batch for one of two endpoints, a conversation, or a prompt."""

ANSWER_COLUMNS = (
    *("reply", "status", "error", "error_kind", "finish"),
    *("prompt_tokens", "tokens", "seconds", "notes"),
)
"""The columns that an answer adds to those of its request."""

_ENDPOINTS: Mapping[str, Shape] = MappingProxyType(
    {"chat/completions": "chat line", "completions": "completion line"}
)
_LINE = frozenset({"custom_id", "method", "url", "body"})
_CHAT = frozenset({"messages", "model", "images"})
_COMPLETION = frozenset({"prompt", "model", "images"})


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a request has if its row does not say it.

    Attributes:
        sampling: How tokens are chosen.
        system: Instruction before a conversation.
        chats: Whether the model chats. A base model completes prompts, and takes no messages.
        models: The names of the model.
        form: What the answer must be; None leaves it free.
        banned: Words that no answer has.
    """

    sampling: Sampling = field(default_factory=Sampling)
    system: str | None = None
    chats: bool = True
    models: frozenset[str] = frozenset()
    form: ReplyForm | None = None
    banned: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """The request of a row.

    Attributes:
        generation: The request for the engine.
        names: Source -> path as the row gives it, for each picture that is a local file.
        model: The model that the row names; None if it names none.
        form: What the answer must be, which *generation* asks for; None leaves it free.
    """

    generation: GenerationRequest
    names: Mapping[str, str]
    model: str | None = None
    form: ReplyForm | None = None


def shape_of(row: JsonObject) -> Shape:
    """Return the shape of *row*.

    Raises:
        PromptError: If it has none, or is a line for an endpoint that is not supported.
    """
    if is_line(row):
        return _endpoint(row)
    if any(row.get(name) is not None for name in CONVERSATIONS):
        return "messages"
    if any(row.get(name) is not None for name in PROMPTS):
        return "prompt"
    for name in row:
        known = (*PROMPTS, *CONVERSATIONS)
        if name not in known and (near := get_close_matches(name.lower(), known, 1, cutoff=0.8)):
            raise PromptError(
                f"no prompt, but `{abbreviated(name)}`", hint=f"did you mean `{near[0]}`?"
            )
    raise PromptError(
        "no prompt", hint="a row has `prompt` or `messages`, or is a line of an OpenAI batch"
    )


def request_of(row: JsonObject, defaults: Defaults, resolve: Resolve) -> Request:
    """Return the request of *row*.

    Args:
        row: A row of any shape.
        defaults: What a request has if the row does not say it.
        resolve: Makes the paths of pictures relative to the current folder.

    Raises:
        PromptError: If the row is no request, or asks for something that is not supported.
    """
    shape, pictures = shape_of(row), RowPictures(resolve)
    if shape.endswith("line"):
        fields, generation = _line(row, shape, defaults, pictures)
    else:
        _check_columns(row)
        make = _chat if shape == "messages" else _prompt
        fields = {name: row[name] for name in row if _is_field(name)}
        generation = make(row, fields, defaults, pictures)
    generation = replace(generation, banned=(*defaults.banned, *banned_of(fields)))
    form = form_of(fields, max_new_tokens=generation.sampling.max_new_tokens) or defaults.form
    model = fields.get("model")
    return Request(
        form.applied_to(generation) if form else generation,
        pictures.names,
        model if isinstance(model, str) and model not in defaults.models else None,
        form,
    )


def columns_of(row: JsonObject) -> JsonObject:
    """Return the columns of *row* that come back in the row of its answer.

    A conversation does not come back, since it may hold whole pictures.
    """
    return {name: value for name, value in row.items() if name not in CONVERSATIONS}


def _is_field(name: str) -> bool:
    return name in ("model", "system") or name in NEUTRAL or is_setting(name)


def _check_columns(row: JsonObject) -> None:
    if taken := next((name for name in ANSWER_COLUMNS if name in row), None):
        raise PromptError(f"`{taken}` is a column of answers", hint="give it another name")


def _endpoint(row: JsonObject) -> Shape:
    method, url = row.get("method", "POST"), row.get("url", "/v1/chat/completions")
    if method != "POST":
        raise PromptError("`method` is not POST")
    known = isinstance(url, str) and next((n for n in _ENDPOINTS if _ends(url, n)), None)
    if not known:
        shown = f"`{url[:60]}`" if isinstance(url, str) else kind_of(url)
        raise PromptError(
            f"`url` is {shown}",
            hint="the endpoints are /v1/chat/completions and /v1/completions",
        )
    return _ENDPOINTS[known]


def _ends(url: str, name: str) -> bool:
    return url.rstrip("/").endswith(f"/{name}") or url == name


def _line(
    row: JsonObject, shape: Shape, defaults: Defaults, pictures: RowPictures
) -> tuple[JsonObject, GenerationRequest]:
    if unknown := next((name for name in row if name not in _LINE), None):
        raise PromptError(f"unknown field `{unknown}` beside `body`", hint="leave it out")
    if "custom_id" in row:
        checked_text(row["custom_id"], "custom_id")
    body = row.get("body")
    if not isinstance(body, dict):
        raise PromptError(f"`body` is not an object but {kind_of(body)}")
    check_known(body, _CHAT if shape == "chat line" else _COMPLETION)
    fields = {n: v for n, v in body.items() if n not in _CHAT | _COMPLETION and n not in LABELS}
    if shape == "chat line":
        made = _chat(body, fields, defaults, pictures)
    else:
        value = body.get("prompt")
        prompt = value[0] if isinstance(value, list) and len(value) == 1 else value
        sampling = sampling_of(_sampling(fields), defaults.sampling)
        text = text_of({"prompt": prompt}, ("prompt",))
        made = _completion(text, pictures.of_columns(_images(body)), sampling)
    return {**fields, "model": body.get("model")}, made


def _chat(
    row: JsonObject, fields: JsonObject, defaults: Defaults, pictures: RowPictures
) -> GenerationRequest:
    name = next((name for name in CONVERSATIONS if row.get(name) is not None), "messages")
    if not defaults.chats:
        raise PromptError(
            f"`{name}`, and this is a base model, which completes a prompt",
            hint="give `prompt`, or choose a model that chats",
        )
    system = _system(fields, defaults)
    attached = pictures.of_columns(row)
    messages = conversation(row.get(name), name, pictures, attached=attached, system=system)
    return GenerationRequest(messages, sampling_of(_sampling(fields), defaults.sampling))


def _prompt(
    row: JsonObject, fields: JsonObject, defaults: Defaults, pictures: RowPictures
) -> GenerationRequest:
    text, attached = text_of(row, PROMPTS), pictures.of_columns(row)
    sampling = sampling_of(_sampling(fields), defaults.sampling)
    if not defaults.chats:
        return _completion(text, attached, sampling)
    user = placed([Message("user", (text,))], attached)
    system = _system(fields, defaults)
    first = (Message("system", (system,)),) if system else ()
    return GenerationRequest((*first, *user), sampling)


def _completion(
    text: str, pictures: tuple[Attachment, ...], sampling: Sampling
) -> GenerationRequest:
    # In a raw prompt, a space separates the text from the image tokens, as in the model card of
    # idefics2-8b-base.
    is_placed = IMAGE_TOKEN in text or not pictures
    parts: tuple[Part, ...] = (*pictures, f" {text}")
    if is_placed:
        parts = raw_parts(text, pictures)
    mode: Mode = "complete"
    return GenerationRequest((Message("user", parts),), sampling, mode)


def _system(fields: JsonObject, defaults: Defaults) -> str | None:
    value = fields.get("system")
    return defaults.system if value is None else checked_text(value, "system")


def _sampling(fields: JsonObject) -> JsonObject:
    others = ("model", "system", BANNED, *FORMS)
    return {name: value for name, value in fields.items() if name not in others}


def _images(body: JsonObject) -> JsonObject:
    return {name: body[name] for name in COLUMNS if name in body}
