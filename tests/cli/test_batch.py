"""`idefics batch` with a fake model: exit code, stdout and stderr, whole."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from idefics_cli.core.errors import ImageError
from idefics_cli.core.types import GenerationRequest
from tests.support.commands import Ran, Terminal, World, run
from tests.support.fakes import FakeEngine

pytestmark = pytest.mark.usefixtures("here")

# The example of vLLM's documentation of `vllm run-batch` (Apache-2.0), unchanged:
# examples/features/openai_batch/openai_example_batch.jsonl
VLLM = (
    '{"custom_id": "request-1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": '
    '"meta-llama/Meta-Llama-3-8B-Instruct", "messages": [{"role": "system", "content": "You are a '
    'helpful assistant."},{"role": "user", "content": "Hello world!"}],"max_completion_tokens": '
    "1000}}\n"
    '{"custom_id": "request-2", "method": "POST", "url": "/v1/chat/completions", "body": {"model": '
    '"meta-llama/Meta-Llama-3-8B-Instruct", "messages": [{"role": "system", "content": "You are an '
    'unhelpful assistant."},{"role": "user", "content": "Hello world!"}],"max_completion_tokens": '
    "1000}}\n"
)


def echo(request: GenerationRequest) -> str:
    """Answer with the question and the pictures."""
    names = ",".join(a.source for a in request.attachments)
    return f"{names}:{request.messages[-1].text}"


def write(path: str, *rows: object) -> None:
    """Write *rows* as JSON lines; text is a line as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    Path(path).write_text("".join(f"{line}\n" for line in lines), "utf-8")


def rows_in(path: str) -> list[Any]:
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def batch(*arguments: str, engine: FakeEngine | None = None, stdin: bytes | None = None) -> Ran:
    """Run `idefics batch` with *arguments*."""
    stream = None if stdin is None else io.BytesIO(stdin)
    world = World(engine or FakeEngine(echo), stdin=stream)
    return run("batch", *arguments, services=world.services)


def test_the_file_of_vllms_documentation_runs_unchanged() -> None:
    Path("openai_example_batch.jsonl").write_text(VLLM, "utf-8")
    engine = FakeEngine(echo)
    ran = batch("openai_example_batch.jsonl", "-o", "results.jsonl", engine=engine)

    assert tuple(ran) == (
        0,
        "",
        "answered 2 of 2 in 2.0 s (1.0/s)\n"
        "note: 2 requests name another model (`meta-llama/Meta-Llama-3-8B-Instruct`); "
        "`-m` decides which one answers\n",
    )
    assert [[m.role for m in r.messages] for r in engine.requests] == [["system", "user"]] * 2
    assert {r.sampling.max_new_tokens for r in engine.requests} == {1000}
    first, second = rows_in("results.jsonl")
    assert (first["custom_id"], second["custom_id"]) == ("request-1", "request-2")
    assert first["id"] != second["id"]
    body = first["response"].pop("body")
    request_id = first["response"].pop("request_id")
    assert request_id
    assert first == {
        "id": first["id"],
        "custom_id": "request-1",
        "response": {"status_code": 200},
        "error": None,
    }
    assert body == {
        "id": body["id"],
        "object": "chat.completion",
        "created": body["created"],
        "model": "smolvlm-256m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": ":Hello world!", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }


def test_a_completion_line_has_the_answer_of_its_endpoint() -> None:
    body = {"prompt": "Once upon a time", "max_tokens": 2}
    write("r.jsonl", {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body})
    ran = batch("r.jsonl")

    answer = ran.record["response"]["body"]
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [
        {"index": 0, "text": ":Once upon", "logprobs": None, "finish_reason": "length"}
    ]
    assert ran.err == (
        "answered 1 of 1 in 1.0 s (1.0/s)\n"
        "note: one answer was cut at the limit of its request; `--max-new-tokens` sets the limit\n"
    )


def test_a_row_comes_back_with_its_columns_and_its_answer() -> None:
    url = "https://me:secret@example.com/b.png"
    row = {"id": 7, "prompt": "Compare.", "images": ["a.jpg", url], "label": {"x": [None]}}
    write("r.jsonl", row)
    ran = batch("r.jsonl")

    assert ran.record == {
        **row,
        "images": ["a.jpg", "https://…@example.com/b.png"],
        "reply": f"a.jpg,{url}:Compare.",
        "status": "ok",
        "error": None,
        "error_kind": None,
        "finish": "stop",
        "prompt_tokens": 21,
        "tokens": 2,
        "seconds": 0.75,
    }


def test_a_conversation_comes_back_without_its_messages() -> None:
    write("r.jsonl", {"id": "x", "conversations": [{"from": "human", "value": "Hello!"}]})
    record = batch("r.jsonl").record

    assert (record["id"], record["reply"]) == ("x", ":Hello!")
    assert "conversations" not in record


def test_requests_come_from_stdin_and_answers_go_to_stdout() -> None:
    ran = batch("-", "-q", stdin=b'{"prompt": "One?"}\n{"prompt": "Two?"}')

    assert [json.loads(line)["reply"] for line in ran.out.splitlines()] == [":One?", ":Two?"]
    assert (ran.code, ran.err) == (0, "")
    assert batch("-", "-q", "-o", "-", stdin=b'{"prompt": "One?"}').record["reply"] == ":One?"


def test_stdin_without_requests_is_an_error() -> None:
    ran = batch("-", stdin=b"\n")

    assert tuple(ran) == (1, "", "error: there are no requests on stdin\n")


def test_requests_on_stdin_are_continued_too() -> None:
    lines = [b'{"prompt": "One?"}\n', b'{"prompt": "Two?"}\n', b'{"prompt": "Three?"}\n']
    assert batch("-", "-o", "a.jsonl", stdin=b"".join(lines[1:])).code == 0
    ran = batch("-", "-o", "a.jsonl", stdin=b"".join(lines))

    assert ran.err.startswith("note: continuing the run: 2 of 3 are answered\nanswered 1 of 1 in")
    assert [row["reply"] for row in rows_in("a.jsonl")] == [":One?", ":Two?", ":Three?"]


WRONG: list[tuple[object, str, str]] = [
    (
        "{bad",
        "not valid JSON: Expecting property name enclosed in double quotes, column 2",
        "prompt",
    ),
    ('{"prompt": "Hi", "seed": NaN}', "`seed` is NaN, which is not a JSON number", "prompt"),
    ({"prompt": "Hi", "image": "no.jpg"}, "no such file: `no.jpg`", "missing"),
    (
        {"messages": [{"role": "robot", "content": "Hi"}]},
        "`messages[0].role` is `robot`",
        "prompt",
    ),
    ({"prompt": ["Hi"]}, "`prompt` is not text but a list", "prompt"),
    ("x" * 100_000_000, "not valid JSON: Expecting value, column 1", "prompt"),
]


def test_wrong_rows_are_error_rows_and_nothing_else_is_lost() -> None:
    good = [{"prompt": f"Question {number}"} for number in range(len(WRONG))]
    mixed = [row for pair in zip(good, (row for row, _, _ in WRONG), strict=True) for row in pair]
    write("r.jsonl", *mixed)
    missing = ImageError("no such file: `no.jpg`", kind="missing", hint="check the path")
    engine = FakeEngine(echo, image_errors={"no.jpg": missing})
    ran = batch("r.jsonl", "-o", "a.jsonl", engine=engine)

    rows = rows_in("a.jsonl")
    assert ran.code == 3
    assert [row["reply"] for row in rows[::2]] == [f":{row['prompt']}" for row in good]
    for number, (row, (_, message, kind)) in enumerate(zip(rows[1::2], WRONG, strict=True)):
        assert row["error"].startswith(f"`r.jsonl`, line {2 * number + 2}: {message}")
        assert (row["reply"], row["status"], row["error_kind"]) == (None, "error", kind)
        assert f"error: `r.jsonl`, line {2 * number + 2}: {message}" in ran.err
    assert ran.err.endswith(
        "answered 6 of 12 in 12 s (0.5/s), 6 failed\nnote: `a.jsonl.failures.jsonl` lists what "
        "failed\n"
    )
    assert Path("a.jsonl.failures.jsonl").read_text("utf-8").splitlines() == [
        row if isinstance(row, str) else json.dumps(row) for row, _, _ in WRONG
    ]


def test_a_repeated_custom_id_is_an_error_of_the_later_line() -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    write("r.jsonl", *[{"custom_id": "a", "url": "/v1/chat/completions", "body": body}] * 2)
    ran = batch("r.jsonl")

    first, second = map(json.loads, ran.out.splitlines())
    message = "`r.jsonl`, line 2: line 1 has the same `custom_id` (give each request its own)"
    assert first["error"] is None
    assert second["error"] == {"code": "prompt", "message": message}
    assert second["response"]["status_code"] == 400
    assert second["response"]["body"]["error"]["message"] == message
    assert ran.code == 3


def test_a_corrected_row_is_answered_by_the_same_command_and_only_that() -> None:
    write("r.jsonl", {"prompt": "One?"}, '{"prompt": "Two?"', {"prompt": "Three?"})
    assert batch("r.jsonl", "-o", "a.jsonl").code == 3
    write("r.jsonl", {"prompt": "One?"}, '{"prompt": "Two?"}', {"prompt": "Three?"})
    engine = FakeEngine(echo)
    ran = batch("r.jsonl", "-o", "a.jsonl", engine=engine)

    assert ran.code == 0
    assert [request.messages[-1].text for request in engine.requests] == ["Two?"]
    assert [row["reply"] for row in rows_in("a.jsonl")] == [":One?", ":Two?", ":Three?"]
    assert not Path("a.jsonl.failures.jsonl").exists()


def test_retry_failed_does_again_what_failed_and_nothing_else() -> None:
    write("r.jsonl", {"prompt": "One?"}, {"prompt": "Two?", "image": "b.jpg"}, {"prompt": "3?"})
    bad = ImageError("cannot read `b.jpg`: it is cut off", kind="truncated")
    engine = FakeEngine(echo, image_errors={"b.jpg": bad})
    assert batch("r.jsonl", "-o", "a.jsonl", engine=engine).code == 3
    assert batch("r.jsonl", "-o", "a.jsonl").err == (
        "note: continuing the run: 2 of 3 are answered, 1 failed before (`--retry-failed` tries "
        "them again)\nnothing is left to answer\n"
        "note: `a.jsonl.failures.jsonl` lists what failed\n"
    )
    engine = FakeEngine(echo)
    assert batch("r.jsonl", "-o", "a.jsonl", "--retry-failed", engine=engine).code == 0
    assert len(engine.requests) == 1
    assert [row["reply"] for row in rows_in("a.jsonl")] == [":One?", "b.jpg:Two?", ":3?"]


def test_a_picture_that_changed_is_asked_about_again() -> None:
    write("r.jsonl", {"prompt": "One?", "image": "a.jpg"}, {"prompt": "Two?", "image": "b.jpg"})
    for name in ("a.jpg", "b.jpg"):
        Path(name).write_bytes(b"1")
    assert batch("r.jsonl", "-o", "a.jsonl").code == 0
    Path("b.jpg").write_bytes(b"22")
    engine = FakeEngine(echo)
    ran = batch("r.jsonl", "-o", "a.jsonl", engine=engine)

    assert ran.err.startswith("note: continuing the run: 1 of 2 are answered, 1 changed since\n")
    assert [request.messages[-1].text for request in engine.requests] == ["Two?"]


def test_a_picture_that_was_only_touched_is_not_asked_about_again() -> None:
    write("r.jsonl", {"prompt": "One?", "images": ["a.jpg", "b\n c.jpg"]})
    for name in ("a.jpg", "b\n c.jpg"):
        Path(name).write_bytes(name.encode())
    assert batch("r.jsonl", "-o", "a.jsonl").code == 0
    os.utime("a.jpg", (1, 1))
    assert batch("r.jsonl", "-o", "a.jsonl").err.endswith("nothing is left to answer\n")
    Path("a.jpg").unlink()
    assert batch("r.jsonl", "-o", "a.jsonl").err.endswith("nothing is left to answer\n")
    Path("b\n c.jpg").write_bytes(b"other")
    assert "1 changed since" in batch("r.jsonl", "-o", "a.jsonl").err


def test_a_missing_picture_that_is_there_now_is_asked_about() -> None:
    write("r.jsonl", {"prompt": "One?", "image": "a.jpg"})
    missing = ImageError("no such file: `a.jpg`", kind="missing")
    engine = FakeEngine(echo, image_errors={"a.jpg": missing})
    assert batch("r.jsonl", "-o", "a.jsonl", engine=engine).code == 1
    Path("a.jpg").write_bytes(b"1")
    assert batch("r.jsonl", "-o", "a.jsonl").code == 0
    assert rows_in("a.jsonl")[0]["reply"] == "a.jpg:One?"


def test_other_settings_are_refused() -> None:
    write("r.jsonl", {"prompt": "One?"})
    assert batch("r.jsonl", "-o", "a.jsonl").code == 0
    ran = batch("r.jsonl", "-o", "a.jsonl", "--system", "Be brief.")

    assert tuple(ran) == (
        2,
        "",
        "error: the run in `a.jsonl.journal` had other settings: system: not given, now "
        "`Be brief.`\n"
        "hint: the former settings continue it; another `-o` begins a new run; `--overwrite` "
        "begins anew, without its 1 answer\n",
    )


def test_other_banned_words_are_other_settings() -> None:
    write("r.jsonl", {"prompt": "One?"})
    engine = FakeEngine(echo)
    assert batch("r.jsonl", "-o", "a.jsonl", "--ban", "red", engine=engine).code == 0
    assert [request.banned for request in engine.requests] == [("red",)]
    ran = batch("r.jsonl", "-o", "a.jsonl", "--ban", "blue", "--ban", "green")
    assert ran.code == 2
    assert "had other settings: banned: `red`, now `blue`, `green`\n" in ran.err


def test_an_output_of_something_else_is_not_overwritten() -> None:
    write("r.jsonl", {"prompt": "One?"})
    Path("a.jsonl").write_text("mine\n", "utf-8")
    ran = batch("r.jsonl", "-o", "a.jsonl")

    hint = "`--overwrite` replaces it; or name another file"
    message = f"error: `a.jsonl` exists already\nhint: {hint}\n"
    assert tuple(ran) == (2, "", message)
    assert Path("a.jsonl").read_text("utf-8") == "mine\n"
    assert batch("r.jsonl", "-o", "a.jsonl", "--overwrite").code == 0
    assert rows_in("a.jsonl")[0]["reply"] == ":One?"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("-",), "`-` needs requests on stdin"),
        (("r.jsonl", "-o", ""), "the name of the output file is empty"),
        (("r.jsonl", "-o", "a.csv"), "answers are JSON lines, not `.csv`"),
        (("r.jsonl", "-o", "metadata.jsonl"), "`metadata.jsonl` names the captions of a data set"),
        (("r.jsonl", "-o", "r.jsonl"), "`r.jsonl` cannot be both the output and the requests"),
        (("r.jsonl", "-o", "no/a.jsonl"), "cannot write `no/a.jsonl`: no folder `no`"),
        (
            ("r.jsonl", "-o", "a.jsonl", "--failures", "mine.txt"),
            "`mine.txt` exists already, and holds other things than requests of this run",
        ),
        (
            ("r.jsonl", "-o", "a.jsonl", "--failures", "other.jsonl"),
            "`other.jsonl` exists already, and holds other things than requests of this run",
        ),
        (
            ("r.jsonl", "-o", "a.jsonl", "--failures", "/dev/zero"),
            "cannot write `/dev/zero`: not a regular file",
        ),
        (("r.jsonl", "--retry-failed"), "only a run with an output file knows what failed"),
    ],
)
def test_a_wrong_argument_is_one_error_and_changes_no_file(
    here: Path, arguments: tuple[str, ...], error: str
) -> None:
    write("r.jsonl", {"prompt": "One?"})
    Path("empty.jsonl").write_text("\n\n", "utf-8")
    Path("mine.txt").write_text("mine\n", "utf-8")
    write("other.jsonl", {"prompt": "Two?"})
    before = {path: path.read_bytes() for path in here.iterdir()}
    services = World(FakeEngine(echo), stdin=Terminal()).services
    ran = run("batch", *arguments, services=services)

    assert (ran.code, ran.out) == (2, "")
    assert ran.err.splitlines()[0] == f"error: {error}"
    assert {path: path.read_bytes() for path in here.iterdir()} == before


def test_a_failures_file_is_a_file_of_requests() -> None:
    write("r.jsonl", {"prompt": "One?"}, {"prompt": "Two?", "image": "b.jpg"})
    bad = ImageError("cannot read `b.jpg`: it is cut off", kind="truncated")
    engine = FakeEngine(echo, image_errors={"b.jpg": bad})
    assert batch("r.jsonl", "-o", "a.jsonl", "--failures", "f.jsonl", engine=engine).code == 3
    assert batch("f.jsonl").record["reply"] == "b.jpg:Two?"


def test_a_failures_file_of_the_same_run_is_written_again() -> None:
    write("r.jsonl", "{bad", {"prompt": 3}, {"prompt": "One?"})
    command = ("r.jsonl", "-o", "a.jsonl", "--failures", "f.jsonl")
    for _ in range(2):
        assert batch(*command).code == 3
        assert Path("f.jsonl").read_text("utf-8") == '{bad\n{"prompt": 3}\n'


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (
            ("-i", "r.jsonl"),
            "the file has no option: `idefics batch requests.jsonl -o answers.jsonl`",
        ),
        (("r.jsonl", "-f", "csv"), "answers are JSON lines: `-o answers.jsonl`"),
        (
            ("r.jsonl", "-p", "What?"),
            "each request has its prompt; `idefics caption -p TEXT` asks about many pictures",
        ),
        (
            ("r.jsonl", "s.jsonl"),
            "one file at a time: `cat *.jsonl | idefics batch -` answers several",
        ),
        (("r.jsonl", "demo"), "`-m demo` chooses the model"),
    ],
)
def test_what_other_tools_would_take_has_a_hint(arguments: tuple[str, ...], hint: str) -> None:
    ran = batch(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.endswith(f"\nhint: {hint}\n")


def test_too_many_failures_stop_the_batch() -> None:
    write("r.jsonl", *({"prompt": number} for number in range(9)))
    ran = batch("r.jsonl", "-o", "a.jsonl", "--max-failures", "2", "--batch-size", "1")
    assert ran.code == 1
    assert "note: stopped, because more than 2 requests failed\n" in ran.err
    assert len(rows_in("a.jsonl")) == 3


def test_pictures_lie_beside_the_requests_or_in_the_named_folder() -> None:
    os.mkdir("data")
    write("data/r.jsonl", {"prompt": "What?", "image": "a.jpg"})

    assert batch("data/r.jsonl").record["reply"] == f"{os.path.join('data', 'a.jpg')}:What?"
    ran = batch("data/r.jsonl", "--image-folder", ".")
    assert ran.record["reply"] == f"{os.path.join('.', 'a.jpg')}:What?"


def test_a_dry_run_names_the_wrong_rows_and_runs_nothing() -> None:
    write("r.jsonl", {"prompt": "One?", "model": "gpt-x"}, {"prompt": 3}, {"prompt": "Two?",
          "image": "no.jpg"})  # fmt: skip
    engine = FakeEngine(echo)
    ran = batch("r.jsonl", "-o", "a.jsonl", "--dry-run", "--batch-size", "4", engine=engine)

    assert ran.code == 0
    assert ran.err == (
        "error: `r.jsonl`, line 2: `prompt` is not text but a number\n"
        "error: `r.jsonl`, line 3: no such file: `no.jpg`\n"
        "hint: check the path\n"
        "note: one request names another model (`gpt-x`); `-m` decides which one answers\n"
    )
    last = "left to answer: 1 of 3 requests\n2 requests would fail\n1 request, 4 at a time\n"
    assert ran.out.endswith(last)
    assert engine.requests == []
    assert not Path("a.jsonl").exists()


def test_ctrl_c_keeps_what_is_answered_and_the_same_command_continues() -> None:
    write("r.jsonl", *({"prompt": f"Question {n}"} for n in range(3)))
    engine = FakeEngine("yes", "a b c", interrupt_after=2)
    ran = batch("r.jsonl", "-o", "a.jsonl", "--batch-size", "1", engine=engine)

    assert (ran.code, ran.out) == (130, "")
    assert ran.err.endswith("note: the same command continues from here\n")
    assert [row["reply"] for row in rows_in("a.jsonl")] == ["yes"]
    assert batch("r.jsonl", "-o", "a.jsonl").code == 0
    assert [row["reply"] for row in rows_in("a.jsonl")] == ["yes", ":Question 1", ":Question 2"]


def test_a_row_that_asks_for_a_column_of_answers_is_refused_but_returned() -> None:
    write("r.jsonl", {"prompt": "One?", "reply": "old", "id": 1})
    ran = batch("r.jsonl")

    assert ran.code == 1
    assert (ran.record["reply"], ran.record["id"]) == (None, 1)
    assert "`reply` is a column of answers" in ran.record["error"]


@pytest.mark.skipif(sys.platform == "win32", reason="no /dev/full")
def test_a_full_device_is_one_clear_error() -> None:
    write("r.jsonl", {"prompt": "One?"})
    ran = batch("r.jsonl", "-o", "/dev/full")

    assert (ran.code, ran.out) == (1, "")
    assert ran.err == "error: cannot write `/dev/full`: No space left on device\n"
