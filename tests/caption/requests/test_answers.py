"""Rows of answers for records that a run seldom has."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from idefics_cli.caption.requests.answers import AnswerSink
from idefics_cli.caption.requests.listing import RequestList
from idefics_cli.caption.sinks.base import Target
from idefics_cli.core.types import CaptionRecord
from idefics_cli.engine.schema.form import schema_form
from tests.support.outputs import Recorder

BODY = {"messages": [{"role": "user", "content": "Hi"}]}
LINE = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": BODY}


def written(row: object, record: CaptionRecord, *, schema: str | None = None) -> Any:
    """Return the row that a sink writes for the only request of a file."""
    stream = Recorder()
    form = schema_form(schema, max_new_tokens=9) if schema else None
    with (
        RequestList("-", io.BytesIO(json.dumps(row).encode())) as rows,
        AnswerSink(Target(stream), rows, model="m", form=form, clock=lambda: 5.5) as sink,
    ):
        sink.write(record)
    return json.loads(stream.data)


def test_a_reply_that_was_cancelled_stays_text() -> None:
    record = CaptionRecord("1", caption='{"a": 1', finish="cancelled")
    assert written({"prompt": "Hi"}, record, schema="a int")["reply"] == '{"a": 1'
    record = CaptionRecord("1", caption='{"a": 1}', finish="stop")
    assert written({"prompt": "Hi"}, record, schema="a int")["reply"] == {"a": 1}


@pytest.mark.parametrize(
    ("kind", "status", "type_"),
    [
        ("bug", 500, "server_error"),
        ("memory_limit", 500, "server_error"),
        ("missing", 400, "invalid_request_error"),
        ("prompt", 400, "invalid_request_error"),
    ],
)
def test_the_status_of_a_failure_says_whose_fault_it_is(kind: str, status: int, type_: str) -> None:
    record = CaptionRecord("1", error="it failed", error_kind=kind, hint="try again")
    message = "stdin, line 1: it failed (try again)"
    row = written(LINE, record)
    assert row["response"]["status_code"] == status
    assert row["response"]["body"] == {
        "error": {"message": message, "type": type_, "param": None, "code": kind}
    }
    assert row["error"] == {"code": kind, "message": message}


def test_a_line_has_the_time_of_its_answer_and_the_notes_of_the_run() -> None:
    record = CaptionRecord("1", caption="Yes.", finish="stop", notes=("answered alone",))
    body = written(LINE, record)["response"]["body"]
    assert (body["created"], body["notes"]) == (5, ["answered alone"])
    row = written({"prompt": "Hi"}, record)
    assert (row["reply"], row["notes"]) == ("Yes.", ["answered alone"])
