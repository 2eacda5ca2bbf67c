"""What a server is and can do, before a request is sent to it."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from PIL import Image

from idefics_cli.core.errors import ModelError, NoServerError, ServerError
from idefics_cli.core.servers import ServerSpec
from idefics_cli.core.text import abbreviated
from idefics_cli.core.types import (
    Attachment,
    GenerationRequest,
    ImageLimits,
    LoadSpec,
    Message,
    Sampling,
)
from idefics_cli.engine.remote.asking import START_HINT
from idefics_cli.engine.remote.connection import BrokenError, ConnectError, HttpExchange
from idefics_cli.engine.remote.engine import RemoteEngine
from idefics_cli.engine.remote.faults import fault_of
from idefics_cli.engine.remote.uploads import data_uri

Sight = Literal["yes", "no", "unknown"]
"""Whether the model of a server sees pictures; "unknown" if the server counts no tokens."""

_ANSWER_SECONDS = 30.0
_SHOWN_MODELS = 10
_PROBE_EDGE = 32


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model of a server, as `/v1/models` describes it.

    Attributes:
        name: Its id.
        other_names: Further names by which requests may call it.
        owner: Who owns it; "idefics" for `idefics serve`, "vllm" for vLLM.
        context_tokens: Number of tokens that it takes; None if unknown.
        revision: The commit of its weights; None if unknown.
        chats: Whether it chats.
    """

    name: str
    other_names: tuple[str, ...] = ()
    owner: str = ""
    context_tokens: int | None = None
    revision: str | None = None
    chats: bool = True


def list_models(url: str, key: str) -> tuple[ServedModel, ...]:
    """Return the models of the server at *url*; none if it has no list.

    Raises:
        NoServerError: If the server cannot be reached, wants another key, or is no such server.
    """
    status, value = _get_json(url, "/models", key)
    if status == 404:
        return ()
    found = value.get("data") if isinstance(value, dict) else None
    if not isinstance(found, list):
        raise NoServerError(
            f"{url} does not answer as OpenAI's API does", hint="is the address right?"
        )
    models = (_model(one) for one in found if isinstance(one, dict))
    return tuple(model for model in models if model.name)


def choose_model(
    url: str, key: str, models: Sequence[ServedModel], name: str | None
) -> ServedModel:
    """Return the model *name* of the server, or its only one.

    Raises:
        ModelError: If there is no such model, or there are several and none is named.
    """
    if name is None:
        if len(models) == 1:
            return models[0]
        known = f"has {len(models)} models" if models else "does not list its models"
        raise ModelError(f"{url} {known}", hint=_names_hint(models))
    for model in models:
        if name in (model.name, *model.other_names):
            return model
    if not models:
        return ServedModel(name)
    # Aliases are not in the list, such as `llava` for `llava:latest` of Ollama.
    status, value = _get_json(url, f"/models/{quote(name)}", key)
    if status == 200 and isinstance(value, dict) and value.get("object") == "model":
        return _model(value)
    raise ModelError(f"{url} has no model `{abbreviated(name)}`", hint=_names_hint(models))


def spec_of(
    url: str, key: str, model: ServedModel, *, limits: ImageLimits, offline: bool
) -> LoadSpec:
    """Return the spec of an engine that asks the server for *model*."""
    return LoadSpec(
        repo=model.name,
        family="",
        name=model.name,
        chats=model.chats,
        limits=limits,
        offline=offline,
        server=ServerSpec(
            url,
            key,
            model.owner,
            model.context_tokens,
            model.revision,
            next(iter(model.other_names), ""),
        ),
    )


def find_sight(spec: LoadSpec) -> Sight:
    """Ask for one token with and without a small picture, and compare the prompts.

    A server that drops pictures counts the same number of tokens for both.

    Raises:
        IdeficsError: If it does not answer, or refuses the picture.
    """
    picture = io.BytesIO()
    Image.new("RGB", (_PROBE_EDGE, _PROBE_EDGE), "teal").save(picture, "PNG")
    attachment = Attachment(data_uri(picture.getvalue()))
    sampling = Sampling(max_new_tokens=1)
    requests = [
        GenerationRequest((Message("user", parts),), sampling)
        for parts in ((attachment, "What is it?"), ("What is it?",))
    ]
    with RemoteEngine(spec) as engine:
        seen, blind = (engine.complete([engine.prepare(each)])[0] for each in requests)
    if not seen.prompt_tokens or not blind.prompt_tokens:
        return "unknown"
    return "yes" if seen.prompt_tokens > blind.prompt_tokens else "no"


def _get_json(url: str, path: str, key: str) -> tuple[int, object]:
    try:
        with HttpExchange(
            url + path,
            key=key,
            silence_seconds=_ANSWER_SECONDS,
            first_byte_seconds=_ANSWER_SECONDS,
        ) as exchange:
            exchange.send()
            status, body = exchange.status, exchange.read()
            headers = exchange.headers
    except ConnectError as error:
        raise NoServerError(f"cannot reach {url}: {error}", hint=START_HINT) from error
    except BrokenError as error:
        raise NoServerError(f"{url} did not answer: {error}", hint=START_HINT) from error
    if status == 404:
        return status, None
    if status != 200:
        fault = fault_of(url, status, headers, body).error
        raise fault if isinstance(fault, ServerError) else NoServerError(str(fault))
    try:
        return status, json.loads(body)
    except (ValueError, RecursionError):
        return status, None


def _model(value: Mapping[str, object]) -> ServedModel:
    meta = value.get("meta")
    # vLLM and ours say `max_model_len`, llama.cpp `meta.n_ctx_train`.
    context = value.get("max_model_len") or (
        meta.get("n_ctx_train") if isinstance(meta, dict) else None
    )
    revision = value.get("revision")
    return ServedModel(
        _text(value.get("id")),
        tuple(filter(None, [_text(value.get("root"))])),
        _text(value.get("owned_by")),
        context if isinstance(context, int) and context > 0 else None,
        revision if isinstance(revision, str) else None,
        value.get("chats") is not False,
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) and value.isprintable() else ""


def _names_hint(models: Sequence[ServedModel]) -> str:
    if not models:
        return "name one with `-m`"
    names = ", ".join(f"`{abbreviated(model.name)}`" for model in models[:_SHOWN_MODELS])
    more = len(models) - _SHOWN_MODELS
    return f"choose with `-m`: {names}" + (f" and {more} more" if more > 0 else "")
