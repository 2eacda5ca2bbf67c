"""Requests and answers in the shapes of OpenAI's API."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from idefics_cli.core.errors import PromptError
from idefics_cli.core.servers import ServerSpec
from idefics_cli.core.types import (
    Attachment,
    Finish,
    GenerationRequest,
    Message,
    Sampling,
)
from idefics_cli.engine.protocol import Urgency
from idefics_cli.engine.remote.connection import BrokenError
from idefics_cli.models.families.raw_prompt import raw_text

JsonValues: TypeAlias = dict[str, object]

_FINISHES: Mapping[str, Finish] = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "length": "length",
}
_OURS_HINT = "`idefics serve` on that machine can do it"


def request_path(request: GenerationRequest) -> str:
    """Return where a request goes, below the address of the server."""
    return "/chat/completions" if request.mode == "chat" else "/completions"


def request_body(
    server: ServerSpec,
    model: str,
    request: GenerationRequest,
    pictures: Sequence[str],
    urgency: Urgency,
) -> JsonValues:
    """Return the body of *request*, whose answer is a stream.

    Args:
        server: The server. Its owner decides which extensions are sent.
        model: The name of the model there.
        request: The request.
        pictures: A `data:` URI for each picture, in order.
        urgency: How soon it should start.

    Raises:
        PromptError: If such a server cannot do it.
    """
    if request.mode == "chat":
        left = iter(pictures)
        asked: JsonValues = {"messages": [_message(one, left) for one in request.messages]}
    else:
        if pictures and not server.is_ours:
            raise PromptError(
                "a raw prompt with pictures is no part of OpenAI's API", hint=_OURS_HINT
            )
        asked = {"prompt": raw_text(request), "images": list(pictures)}
        asked = asked if pictures else {"prompt": asked["prompt"]}
    return {
        "model": model,
        **asked,
        **_sampling(request.sampling, is_ours=server.is_ours),
        **_form(request, server),
        **({"priority": urgency} if server.is_ours else {}),
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@dataclass(slots=True)
class ReplyReader:
    """Joins the events of an answer.

    Attributes:
        text: The text so far.
        pieces: Number of events with text.
        finish: Why the reply ended, as the server says it; None before its end.
        usage: The numbers of tokens, if the server says them.
        error: The error with which the stream ended, as JSON.
    """

    text: str = ""
    pieces: int = 0
    finish: str | None = None
    usage: Mapping[str, object] | None = None
    error: bytes | None = None
    is_done: bool = False

    def feed(self, line: bytes) -> str:
        """Read a line of a stream, and return the new text in it.

        Raises:
            BrokenError: If it is not JSON.
        """
        data = line.strip()
        if not data.startswith(b"data:"):
            return ""  # a comment, an empty line, or a field that says nothing
        data = data.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            self.is_done = True
            return ""
        return self.read(data)

    def read(self, data: bytes) -> str:
        """Read an event, or a whole answer, and return its text.

        Raises:
            BrokenError: If it is not JSON.
        """
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            raise BrokenError("the answer is not JSON") from None
        if not isinstance(value, dict):
            raise BrokenError("the answer is not a JSON object")
        if value.get("error") or value.get("object") == "error":
            self.error = data
            return ""
        if isinstance(usage := value.get("usage"), dict):
            self.usage = usage
        choices = value.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            return ""
        return self._read_choice(choices[0])

    def _read_choice(self, choice: Mapping[str, object]) -> str:
        inner = choice.get("delta") or choice.get("message")
        content = inner.get("content") if isinstance(inner, dict) else choice.get("text")
        text = _joined(content)
        if isinstance(reason := choice.get("finish_reason"), str) and reason:
            self.finish = reason
        self.text += text
        self.pieces += bool(text)
        return text

    @property
    def known_finish(self) -> Finish | None:
        """Why the reply ended; None if it has no end that a reply of ours can have."""
        return None if self.finish is None else _FINISHES.get(self.finish)

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens of the prompt; 0 if unknown."""
        return _count(self.usage, "prompt_tokens")

    @property
    def reused_tokens(self) -> int:
        """Number of tokens of the prompt that the server had computed before."""
        details = (self.usage or {}).get("prompt_tokens_details")
        return _count(details if isinstance(details, dict) else None, "cached_tokens")

    @property
    def new_tokens(self) -> int:
        """Number of generated tokens; an estimate if the server does not say it."""
        return _count(self.usage, "completion_tokens") or self.pieces


def _message(message: Message, pictures: object) -> JsonValues:
    if not message.attachments:
        return {"role": message.role, "content": message.text}
    assert hasattr(pictures, "__next__")
    parts = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": _picture(part, next(pictures))}
        for part in message.parts
    ]
    return {"role": message.role, "content": parts}


def _picture(attachment: Attachment, uri: str) -> JsonValues:
    detail = attachment.detail
    if detail.splitting is None:
        return {"url": uri}
    return {"url": uri, "detail": "high" if detail.splitting else "low"}


def _sampling(sampling: Sampling, *, is_ours: bool) -> JsonValues:
    values: JsonValues = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        # Ollama knows no `max_completion_tokens` (openai.go).
        "max_tokens": sampling.max_new_tokens,
    }
    # Not every server knows the extensions. Ours may have other defaults, so it gets all of them.
    if is_ours or sampling.top_k:
        values["top_k"] = sampling.top_k
    if is_ours or sampling.repetition_penalty != 1:
        values["repetition_penalty"] = sampling.repetition_penalty
    penalties = {
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
    }
    values |= {name: penalty for name, penalty in penalties.items() if penalty}
    if sampling.ignores_end:
        values["ignore_eos"] = True
    if sampling.seed is not None:
        values["seed"] = sampling.seed
    if sampling.stop:
        values["stop"] = list(sampling.stop)
    return values


def _form(request: GenerationRequest, server: ServerSpec) -> JsonValues:
    """Return the fields for the constraint and the banned words of *request*."""
    fields: JsonValues = {}
    # A server that does not know an extension ignores it, and the reply would have another form.
    has_extensions = server.is_ours or server.owner == "vllm"
    if request.banned:
        if not has_extensions:
            raise PromptError("this server cannot ban words", hint=_OURS_HINT)
        fields["bad_words"] = list(request.banned)
    constraint = request.constraint
    if constraint is None:
        return fields
    if constraint.kind == "choice":
        raise PromptError(
            "a server does not say how likely choices are",
            hint="`--regex 'yes|no'` makes the answer one of them",
        )
    if constraint.kind == "schema":
        schema = {"name": "reply", "strict": True, "schema": json.loads(constraint.text)}
        return {**fields, "response_format": {"type": "json_schema", "json_schema": schema}}
    if not has_extensions:
        raise PromptError("this server has no regular expressions", hint=_OURS_HINT)
    return {**fields, "structured_outputs": {"regex": constraint.text}}


def _joined(content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = (one.get("text") for one in content if isinstance(one, dict))
    return "".join(text for text in texts if isinstance(text, str))


def _count(values: Mapping[str, object] | None, name: str) -> int:
    value = (values or {}).get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
