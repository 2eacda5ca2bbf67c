"""The rows of answers: each has the shape of its request, and scripts for that shape read it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path

from idefics_cli.caption.requests.listing import RequestList
from idefics_cli.caption.requests.row import decode_row, is_line
from idefics_cli.caption.requests.shapes import ANSWER_COLUMNS, columns_of, shape_of
from idefics_cli.caption.sinks.base import RecordError, Target
from idefics_cli.caption.sinks.jsonl import encode
from idefics_cli.caption.sinks.lines import LineSink
from idefics_cli.core.conversation.pictures import COLUMNS
from idefics_cli.core.errors import PromptError
from idefics_cli.core.json_objects import JsonObject
from idefics_cli.core.sources import recorded_source
from idefics_cli.core.types import CaptionRecord, ConstraintKind
from idefics_cli.engine.schema.form import ReplyForm, parse_reply
from idefics_cli.engine.schema.requested import wanted_kind

# These kinds of errors are faults of the program or of the machine (status 500). All other kinds
# are faults of the request (status 400).
_OUR_ERRORS = frozenset({"bug", "memory_limit", "model"})


class AnswerSink(LineSink):
    """Writes every record as a row in the shape of its request, failures too; see `LineSink`.

    A line of an OpenAI batch gets a line of a batch output. Every other row comes back with its
    columns, and with those of `ANSWER_COLUMNS`.

    Args:
        target: Where the sink writes.
        rows: The requests.
        model: Name of the model.
        form: The form of answers whose request asks for none.
        clock: Returns the Unix time in seconds.
    """

    existing_hint = "`--overwrite` replaces it; or name another file"

    def __init__(
        self,
        target: Target,
        rows: RequestList,
        *,
        model: str,
        form: ReplyForm | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(target)
        self._rows = rows
        self._model = model
        self._kind = None if form is None else form.constraint.kind
        self._clock = clock
        self._is_batch: bool | None = None

    def write(self, record: CaptionRecord) -> None:
        """Write the row of *record*, whose name is the key of a request; see `Sink.write`."""
        self._write_bytes(self.line(record, record.file_name))

    def line(self, record: CaptionRecord, file_name: str) -> bytes:
        """Return the answer of the request *file_name*."""
        try:
            row = decode_row(self._rows.text(file_name))
        except PromptError as problem:
            if record.error is None:
                message = f"cannot write the answer: {problem}"
                raise RecordError(message, hint=problem.hint) from problem
            row = {}
        error = None if record.error is None else self._failure(record)
        if is_line(row) or (not row and self._holds_batch()):
            return encode(self._output_line(row, record, error))
        shared = _shared(columns_of(row), record, error)
        if record.caption is not None and self._kind_of(row) in ("schema", "choice"):
            with suppress(ValueError):  # a reply that was cancelled stays text
                shared["reply"] = parse_reply(record.caption)
        return encode(shared)

    def stored(self, path: Path) -> AbstractSet[str]:
        """Return nothing: answers are not added to those of another run."""
        return frozenset()

    def _kind_of(self, row: JsonObject) -> ConstraintKind | None:
        return wanted_kind(row) or self._kind

    def _text(self, row: JsonObject, record: CaptionRecord) -> str | None:
        """Return the text of a reply; of a choice, the choice without its probabilities."""
        body = row.get("body")
        kind = self._kind_of(body) if isinstance(body, dict) else None
        if record.caption is not None and kind == "choice":
            with suppress(ValueError, KeyError, TypeError):
                return str(json.loads(record.caption)["choice"])
        return record.caption

    def _failure(self, record: CaptionRecord) -> str:
        """Return the error of *record* with the line of its row and the fix."""
        hint = f" ({record.hint})" if record.hint else ""
        return f"{self._rows.place(record.file_name)}: {record.error}{hint}"

    def _holds_batch(self) -> bool:
        """Whether the first row is a line of an OpenAI batch, so that unreadable rows count so."""
        if self._is_batch is None:
            try:
                self._is_batch = is_line(decode_row(self._rows.text(self._rows[0].key)))
            except PromptError:
                self._is_batch = False
        return self._is_batch

    def _output_line(self, row: JsonObject, record: CaptionRecord, error: str | None) -> JsonObject:
        identity = hashlib.sha256(self._rows.identity(record.file_name).encode()).hexdigest()
        if error is None:
            status, body = 200, self._completion(row, record, identity)
        else:
            status = 500 if record.error_kind in _OUR_ERRORS else 400
            kind = "server_error" if status == 500 else "invalid_request_error"
            fields = {"message": error, "type": kind, "param": None, "code": record.error_kind}
            body = {"error": fields}
        return {
            "id": f"batch_req_{identity[:24]}",
            "custom_id": row.get("custom_id"),
            "response": {"status_code": status, "request_id": identity[24:56], "body": body},
            "error": None if error is None else {"code": record.error_kind, "message": error},
        }

    def _completion(
        self, row: JsonObject, record: CaptionRecord, identity: str
    ) -> dict[str, object]:
        is_chat = shape_of(row) == "chat line"
        text = self._text(row, record)
        message = {"role": "assistant", "content": text, "refusal": None}
        content = {"message": message} if is_chat else {"text": text}
        body: dict[str, object] = {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{identity[:24]}",
            "object": "chat.completion" if is_chat else "text_completion",
            "created": int(self._clock()),
            "model": self._model,
            "choices": [{"index": 0, **content, "logprobs": None, "finish_reason": record.finish}],
            "usage": {
                "prompt_tokens": record.prompt_tokens,
                "completion_tokens": record.new_tokens,
                "total_tokens": record.prompt_tokens + record.new_tokens,
            },
        }
        return {**body, "notes": list(record.notes)} if record.notes else body


def _shared(columns: JsonObject, record: CaptionRecord, error: str | None) -> dict[str, object]:
    kept = {
        name: _recorded(value) if name in COLUMNS else value
        for name, value in columns.items()
        if name not in ANSWER_COLUMNS
    }
    answer: dict[str, object] = {
        "reply": record.caption,
        "status": "ok" if error is None else "error",
        "error": error,
        "error_kind": record.error_kind,
        "finish": record.finish,
        "prompt_tokens": record.prompt_tokens,
        "tokens": record.new_tokens,
        "seconds": round(record.seconds, 3),
    }
    if record.notes:
        answer["notes"] = list(record.notes)
    return {**kept, **answer}


def _recorded(value: object) -> object:
    """Return the *value* that names pictures, but without passwords and the data of pictures."""
    if isinstance(value, str):
        return recorded_source(value)
    if isinstance(value, list):
        return [_recorded(one) for one in value]
    if isinstance(value, dict):
        return {name: _recorded(one) for name, one in value.items()}
    return value
