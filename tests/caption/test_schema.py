"""Captions with a schema or a pattern: typed columns, cut replies, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from idefics_cli.core.types import GenerationRequest
from tests.support.commands import Ran, World, run
from tests.support.fakes import FakeEngine

SCHEMA = "caption, people int, share float, ok bool, tags str[], note?"
# A word is a token of the fake engine, so the last reply is cut after 20 of them.
REPLIES = {
    "a.png": '{"caption": "A =cat", "people": 2, "share": 1, "ok": true, "tags": ["x", "y"]}',
    "b.png": '{"caption": "", "people": -1, "share": 0.5, "ok": false, "tags": [], "note": "n"}',
    "c.png": '{"caption": "' + "on and " * 20,
}
NOTHING = dict.fromkeys(("caption", "people", "share", "ok", "tags", "note"))
ROWS: list[dict[str, Any]] = [
    {"caption": "A =cat", "people": 2, "share": 1.0, "ok": True, "tags": ["x", "y"], "note": None},
    {"caption": "", "people": -1, "share": 0.5, "ok": False, "tags": [], "note": "n"},
    NOTHING,
]
CUT = "the answer was cut after 20 tokens, before its JSON was complete"
Answer = Callable[[GenerationRequest], str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in REPLIES:
        Image.new("RGB", (8, 6), "red").save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def answer(request: GenerationRequest) -> str:
    return REPLIES[Path(request.attachments[0].source).name]


def caption(*words: str, answer: Answer = answer) -> tuple[Ran, FakeEngine]:
    world = World(FakeEngine(answer))
    limit = ("--max-new-tokens", "20", "--batch-size", "1")
    return run("caption", *words, *limit, services=world.services), world.engine


def with_schema(output: str, *words: str) -> Ran:
    return caption("a.png", "b.png", "c.png", "--schema", SCHEMA, "-o", output, *words)[0]


def test_each_property_is_a_column_of_json_lines(folder: Path) -> None:
    ran = with_schema("out.jsonl")
    assert (ran.code, ran.out) == (3, "")
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [*rows[0]][:8] == ["file_name", *NOTHING, "status"]
    assert [{name: row[name] for name in NOTHING} for row in rows] == ROWS
    assert [type(row["share"]) for row in rows[:2]] == [float, float]
    assert [row["status"] for row in rows] == ["ok", "ok", "error"]
    assert (rows[2]["error"], rows[2]["error_kind"]) == (CUT, "cut")


def test_each_property_is_a_column_of_csv_and_tsv(folder: Path) -> None:
    assert with_schema("out.csv").code == 3
    rows = [*csv.DictReader(io.StringIO((folder / "out.csv").read_text()))]
    assert [[row[name] for name in NOTHING] for row in rows] == [
        ["A =cat", "2", "1.0", "true", '["x","y"]', ""],
        ["", "-1", "0.5", "false", "[]", "n"],
        [""] * 6,
    ]
    assert [row["error_kind"] for row in rows] == ["", "", "cut"]
    assert with_schema("-").out == (
        'a.png\tA =cat\t2\t1.0\ttrue\t["x","y"]\t\nb.png\t\t-1\t0.5\tfalse\t[]\tn\n'
    )


def test_each_property_is_a_typed_column_of_parquet(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    assert with_schema("out.parquet").code == 3
    table = parquet.read_table(folder / "out.parquet")
    assert [table.schema.field(name).type for name in NOTHING] == [
        pyarrow.string(), pyarrow.int64(), pyarrow.float64(),
        pyarrow.bool_(), pyarrow.string(), pyarrow.string(),
    ]  # fmt: skip
    texts = ['["x","y"]', "[]", None]
    rows = [row | {"tags": text} for row, text in zip(ROWS, texts, strict=True)]
    assert table.select([*NOTHING]).to_pylist() == rows


def test_a_text_file_and_the_report_have_the_json(folder: Path) -> None:
    assert with_schema("texts", "-f", "txt", "--report", "all.html").code == 3
    assert (folder / "texts" / "a.txt").read_text().strip() == REPLIES["a.png"]
    assert not (folder / "texts" / "c.txt").exists()
    assert "people" in (folder / "all.html").read_text()


def test_a_run_goes_on_and_another_schema_is_another_run(folder: Path) -> None:
    with_schema("out.jsonl")
    ran, engine = caption("a.png", "b.png", "c.png", "--schema", SCHEMA, "-o", "out.jsonl")
    assert (ran.code, engine.requests) == (3, [])
    ran, _ = caption("a.png", "b.png", "c.png", "--schema", "caption", "-o", "out.jsonl")
    assert ran.code == 2
    assert "constraint" in ran.err
    ran = with_schema("out.jsonl", "--no-schema-prompt")
    assert ran.code == 2


def test_failed_replies_are_tried_again(folder: Path) -> None:
    with_schema("out.jsonl")
    words = ("a.png", "b.png", "c.png", "--schema", SCHEMA, "-o", "out.jsonl", "--retry-failed")
    ran, engine = caption(*words, answer=lambda request: REPLIES["a.png"])
    assert (ran.code, len(engine.requests)) == (0, 1)
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [(row["file_name"], row["people"]) for row in rows] == [
        ("a.png", 2), ("b.png", -1), ("c.png", 2),
    ]  # fmt: skip


def test_extend_asks_again_with_more_tokens(folder: Path) -> None:
    def longer(request: GenerationRequest) -> str:
        return REPLIES["c.png" if request.sampling.max_new_tokens == 20 else "a.png"]

    words = ("a.png", "--schema", SCHEMA, "--on-truncate", "extend", "-o", "out.jsonl")
    ran, engine = caption(*words, answer=longer)
    assert ran.code == 0
    assert [request.sampling.max_new_tokens for request in engine.requests] == [20, 80]


def test_the_prompt_tells_the_fields_also_after_a_template(folder: Path) -> None:
    _, engine = caption("a.png", "--schema", "caption: {x} and so on", "-p", "This is {stem}.")
    assert engine.requests[0].messages[0].text == (
        "This is a.\nAnswer as JSON with these fields:\n- caption (text): {x} and so on"
    )


def test_texts_that_go_in_circles_are_sampled_again(folder: Path) -> None:
    circle = '{"caption": "' + "very " * 9 + 'nice"}'

    def second(request: GenerationRequest) -> str:
        return '{"caption": "nice"}' if request.sampling.temperature else circle

    ran, engine = caption("a.png", "--schema", "caption", answer=second)
    assert (ran.out, len(engine.requests)) == ("a.png\tnice\n", 2)
    tags = '{"tags": ["a", "a", "a", "a", "a", "a", "a", "a", "a", "a"]}'
    ran, engine = caption("a.png", "--schema", "tags str[]", answer=lambda request: tags)
    assert len(engine.requests) == 1


def test_replies_that_are_no_object_are_the_caption_itself(folder: Path) -> None:
    schema = '{"type": "array", "items": {"enum": [1, 2]}}'
    ran, _ = caption("a.png", "--schema", schema, answer=lambda request: "[1, 2]")
    assert (ran.code, ran.out) == (0, "a.png\t[1, 2]\n")


def test_a_reply_without_its_form_is_an_error(folder: Path) -> None:
    for reply in ("no JSON", "[1]", '{"a": -1e999}'):
        ran, _ = caption("a.png", "--schema", "a", answer=lambda request, reply=reply: reply)  # type: ignore[misc]  # a default binds the loop variable
        assert (ran.code, ran.out) == (1, "")
        assert re.search(r"the answer (cannot be read as JSON: |is not a JSON object)", ran.err)


def test_a_pattern_constrains_every_answer_and_a_cut_one_is_an_error(folder: Path) -> None:
    words = ("a.png", "--regex", "(x )+", "--ask", "a=What?", "--ask", "b=How?")
    ran, engine = caption(*words, answer=lambda request: "x x")
    assert (ran.code, ran.out) == (0, "a.png\tx x\tx x\n")
    assert {request.constraint.kind for request in engine.requests if request.constraint} == {
        "regex"
    }
    ran, _ = caption("a.png", "--regex", "(x )+", answer=lambda request: "x " * 30)
    assert (ran.code, ran.out) == (1, "")
    assert "the answer was cut after 20 tokens, before its text was complete" in ran.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--schema", "Status"), "the schema has the property `Status`, and each row has a column"),
        (("--schema", "file_name"), "the schema has the property `file_name`"),
        (("--schema", "a", "--ask", "b=What?"), "--schema and --ask exclude each other"),
        (("--schema", "a", "--samples", "2", "--temperature", "1"),
         "--schema and --samples exclude each other"),
        (("--schema", "a", "--prefix", "x"), "--prefix would change answers"),
        (("--regex", "a", "--strip-preamble"), "--strip-preamble would change answers"),
        (("--regex", "a", "--on-truncate", "trim"), "--on-truncate trim would change answers"),
        (("--schema", '{"uniqueItems": true}'), "`uniqueItems` cannot be used"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_an_error(words: tuple[str, ...], message: str) -> None:
    ran, engine = caption("a.png", *words)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"error: {message}")
    assert engine.requests == []


def test_a_dry_run_shows_the_bounds(folder: Path) -> None:
    ran, _ = caption("a.png", "--schema", "a", "--dry-run", answer=lambda request: '{"a": "x"}')
    assert ran.code == 0
    assert ran.out.splitlines()[-2:] == [
        'answers match the schema {"type": "object", "properties": {"a": {"type": "string", '
        '"maxLength": 80}}, "required": ["a"], "additionalProperties": false}',
        "about 1.0 s, measured with 1 picture",
    ]
