"""The shapes of answers: JSON objects, and the events of streams."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from idefics_cli import __version__
from idefics_cli.core.logprobs import TokenLogprob
from idefics_cli.core.types import Completion, LoadSpec

# `json.dumps` would make an encoder for each call.
_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)

DONE = b"data: [DONE]\n\n"
"""The last event of every stream."""


def event(value: object) -> bytes:
    """Return *value* as an event of a stream."""
    return b"data: " + to_json(value) + b"\n\n"


def to_json(value: object) -> bytes:
    """Return *value* as JSON in UTF-8."""
    return _JSON.encode(value).encode("utf-8", "backslashreplace")


def fingerprint(spec: LoadSpec, revision: str | None) -> str:
    """Return a short text that changes when the same request could get another answer."""
    adapter = None if spec.adapter is None else spec.adapter.digest
    parts = (spec.repo, revision, spec.dtype, spec.quantization, spec.format_4bit, adapter)
    sizes = (spec.splitting, spec.longest_edge, __version__)
    return f"fp_{hashlib.sha256(repr((parts, sizes)).encode()).hexdigest()[:10]}"


def usage(outcomes: Sequence[Completion]) -> dict[str, object]:
    """Return the numbers of tokens of all replies to one prompt."""
    prompt = outcomes[0].prompt_tokens if outcomes else 0
    new = sum(outcome.new_tokens for outcome in outcomes)
    cached = outcomes[0].reused_tokens if outcomes else 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


@dataclass(frozen=True, slots=True)
class ReplyShape:
    """The shape of the answer to one request.

    Attributes:
        is_chat: Whether it is an answer of `/v1/chat/completions`, not of `/v1/completions`.
        created: Time of the request, in seconds since 1970.
        model: The name of the model.
        fingerprint: See `fingerprint`.
        includes_usage: Whether a stream ends with the numbers of tokens.
        tells_logprobs: Whether replies have the probabilities of their tokens.
        identity: The id of the answer.
    """

    is_chat: bool
    created: int
    model: str
    fingerprint: str
    includes_usage: bool
    tells_logprobs: bool
    identity: str

    @staticmethod
    def new_identity(*, is_chat: bool) -> str:
        """Return the id of a new answer."""
        return ("chatcmpl-" if is_chat else "cmpl-") + secrets.token_hex(12)

    def whole(self, outcomes: Sequence[Completion]) -> dict[str, object]:
        """Return the answer with all replies."""
        choices = []
        for index, outcome in enumerate(outcomes):
            message = {"role": "assistant", "content": outcome.text, "refusal": None}
            text = {"message": message} if self.is_chat else {"text": outcome.text}
            logprobs = self._logprobs(outcome.logprobs)
            choices.append(
                {"index": index, **text, "logprobs": logprobs, "finish_reason": outcome.finish}
            )
        return {**self._head(is_chunk=False), "choices": choices, "usage": usage(outcomes)}

    def role(self, index: int) -> bytes:
        """Return the first event of a reply, which has no text."""
        if not self.is_chat:
            return b""
        return self._chunk(index, {"role": "assistant", "content": ""}, None)

    def piece(
        self, index: int, text: str, logprobs: Sequence[TokenLogprob] = (), offset: int = 0
    ) -> bytes:
        """Return an event with more text of a reply.

        Args:
            index: The number of the reply.
            text: The text.
            logprobs: Those of the tokens of *text*.
            offset: Number of characters of all tokens before.
        """
        told = self._logprobs(logprobs, offset)
        return self._chunk(index, {"content": text} if self.is_chat else text, None, told)

    def silence(self, index: int) -> bytes:
        """Return an event without text, which keeps the connection alive."""
        return self._chunk(index, {} if self.is_chat else "", None)

    def finish(self, index: int, reason: str) -> bytes:
        """Return the last event of a reply."""
        return self._chunk(index, {} if self.is_chat else "", reason)

    def end(self, outcomes: Sequence[Completion]) -> bytes:
        """Return the end of a stream that did not fail."""
        if not self.includes_usage:
            return DONE
        numbers = {**self._head(is_chunk=True), "choices": [], "usage": usage(outcomes)}
        return event(numbers) + DONE

    def _logprobs(self, logprobs: Sequence[TokenLogprob], offset: int = 0) -> object:
        if not self.tells_logprobs:
            return None
        if self.is_chat:
            return {"content": [_chat_logprob(each) for each in logprobs], "refusal": None}
        return _completion_logprobs(logprobs, offset)

    def _chunk(
        self, index: int, delta: object, reason: str | None, logprobs: object = None
    ) -> bytes:
        text = {"delta": delta} if self.is_chat else {"text": delta}
        choice = {"index": index, **text, "logprobs": logprobs, "finish_reason": reason}
        head: dict[str, object] = {**self._head(is_chunk=True), "choices": [choice]}
        if self.includes_usage:
            head["usage"] = None
        return event(head)

    def _head(self, *, is_chunk: bool) -> dict[str, object]:
        chat = "chat.completion.chunk" if is_chunk else "chat.completion"
        return {
            "id": self.identity,
            "object": chat if self.is_chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def _chat_logprob(each: TokenLogprob) -> dict[str, object]:
    return {**_alone(each), "top_logprobs": [_alone(other) for other in each.top]}


def _alone(each: TokenLogprob) -> dict[str, object]:
    return {"token": each.text, "logprob": each.logprob, "bytes": list(each.data)}


def _completion_logprobs(logprobs: Sequence[TokenLogprob], offset: int) -> dict[str, object]:
    """Return *logprobs* in the shape of `/v1/completions`.

    Args:
        logprobs: Those of some tokens.
        offset: Number of characters of all tokens before.
    """
    lengths = [len(each.text) for each in logprobs]
    return {
        "tokens": [each.text for each in logprobs],
        "token_logprobs": [each.logprob for each in logprobs],
        "top_logprobs": [{other.text: other.logprob for other in each.top} for each in logprobs],
        "text_offset": [offset + sum(lengths[:at]) for at in range(len(lengths))],
    }
