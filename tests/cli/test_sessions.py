"""`idefics sessions`: list, show, export, remove, prune."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from idefics_cli.chat.attachments import StagedPicture
from idefics_cli.chat.export import FORMATS
from idefics_cli.chat.store.sessions import SessionStore
from idefics_cli.cli.services import Services
from tests.support.commands import Ran
from tests.support.commands import run as run_with

Run = Callable[..., Ran]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(*arguments: str, terminal: bool = False) -> Ran:
        services = Services(environ={"XDG_DATA_HOME": str(tmp_path)}, stdin=None)
        return run_with("sessions", *arguments, services=services, terminal=terminal)

    return run


def store(tmp_path: Path, *, days_ago: float = 0) -> SessionStore:
    then = datetime.now(UTC) - timedelta(days=days_ago)
    return SessionStore(tmp_path / "idefics", now=lambda: then)


def make(
    tmp_path: Path, name: str | None = None, *, text: str = "What is it?", days_ago: float = 0
) -> str:
    with store(tmp_path, days_ago=days_ago).create("demo", name) as session:
        session.ask(text, [StagedPicture("/photos/cat.png", b"bytes of a picture", 640, 480)])
        session.reply("A cat.", "stop")
        return session.id


@pytest.mark.parametrize("arguments", [(), ("list",)])
def test_without_sessions_a_note_says_so(run: Run, arguments: tuple[str, ...]) -> None:
    ran = run(*arguments)
    assert tuple(ran) == (0, "", "note: there are no sessions yet; `idefics chat` starts one\n")
    assert tuple(run("list", "--json")) == (0, "[]\n", "")


def test_the_list_is_a_table_with_the_last_one_first(run: Run, tmp_path: Path) -> None:
    old = make(tmp_path, "cats", days_ago=2)
    new = make(tmp_path, text="What\nis " + "it " * 40)
    ran = run()
    header, first, second = ran.out.splitlines()
    assert header.split() == ["ID", "CHANGED", "TURNS", "PICTURES", "MODEL", "TITLE"]
    assert first.startswith(f"{new}  ")
    assert first.endswith("…")
    assert second.startswith(f"{old}  ")
    assert second.endswith("  1      1         demo   cats")
    assert run("list") == ran


def test_json_lists_the_same(run: Run, tmp_path: Path) -> None:
    old, new = make(tmp_path, "cats", days_ago=2), make(tmp_path)
    assert run("--json") == run("list", "--json")
    records = run("--json").record
    assert [record["id"] for record in records] == [new, old]
    assert records[1] | {"created": "", "updated": "", "size_bytes": 0} == {
        "id": old,
        "name": "cats",
        "title": "cats",
        "model": "demo",
        "created": "",
        "updated": "",
        "turns": 1,
        "pictures": 1,
        "size_bytes": 0,
        "problem": None,
    }
    assert datetime.fromisoformat(records[1]["updated"]).tzinfo is not None


def test_a_flag_before_the_command_is_not_silently_ignored(run: Run) -> None:
    ran = run("--json", "list")
    assert tuple(ran) == (
        2,
        "",
        "error: --json and --quiet belong after the command\n"
        "hint: `idefics sessions list --json`\n",
    )


def test_a_damaged_session_does_not_hide_the_others(run: Run, tmp_path: Path) -> None:
    good = make(tmp_path)
    bad = make(tmp_path)
    path = tmp_path / "idefics" / "sessions" / f"{bad}.jsonl"
    path.write_bytes(b"{\n" + path.read_bytes())
    ran = run()
    assert ran.code == 0
    assert f"warning: cannot read session `{bad}`: line 1 is damaged\n" == ran.err
    assert {line.split()[0] for line in ran.out.splitlines()} == {"ID", good, bad}
    assert run("show", bad).code == 1


@pytest.mark.parametrize("key", ["cats", "last", "id", "prefix"])
def test_show_prints_what_was_said(run: Run, tmp_path: Path, key: str) -> None:
    session_id = make(tmp_path, "cats")
    key = {"id": session_id, "prefix": session_id[:4]}.get(key, key)
    code, out, err = run("show", key)
    assert (code, err) == (0, "")
    first, rest = str(out).split("\n", 1)
    assert first.startswith(f"{session_id}  ")
    assert first.endswith("  demo  cats")
    assert rest == "\n[1] /photos/cat.png 640x480\n1 > What is it?\nA cat.\n"


def test_show_as_json_has_the_texts_and_where_the_pictures_are(run: Run, tmp_path: Path) -> None:
    make(tmp_path, "cats")
    record = run("show", "cats", "--json").record
    (turn,) = record["conversation"]
    (picture,) = record["ledger"]
    assert (turn["text"], turn["reply"]["text"], turn["pictures"]) == ("What is it?", "A cat.", [1])
    assert Path(picture["file"]).read_bytes() == b"bytes of a picture"
    assert picture["source"] == "/photos/cat.png"


def test_escape_codes_in_a_session_do_not_reach_the_terminal(run: Run, tmp_path: Path) -> None:
    make(tmp_path, text="\x1b[2J[red]hi")
    for arguments in ((), ("show", "last"), ("export", "last", "-f", "json", "-o", "-")):
        ran = run(*arguments, terminal=True)
        assert "\x1b[2J" not in ran.out
        assert ("\\u001b" if "export" in arguments else "\u241b") + "[2J[red]hi" in ran.out


@pytest.mark.parametrize("arguments", [("show",), ("export",), ("rm",)])
def test_an_unknown_session_is_an_error(
    run: Run, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    make(tmp_path)
    assert tuple(run(*arguments, "none")) == (
        1,
        "",
        "error: no session `none`\nhint: `idefics sessions` lists them\n",
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_holds_what_stdout_gets(run: Run, tmp_path: Path, kind: str) -> None:
    session_id = make(tmp_path, "cats")
    path = tmp_path / f"out.{kind}"
    printed = run("export", "cats", "--format", kind)
    ran = run("export", "cats", "-o", str(path))
    assert tuple(ran) == (0, "", f"note: session {session_id} is in `{path}`\n")
    conversation = store(tmp_path).read("cats")[1]
    assert path.read_text(encoding="utf-8") == printed.out == FORMATS[kind](conversation)


def test_an_export_does_not_fill_the_terminal_with_pictures(run: Run, tmp_path: Path) -> None:
    make(tmp_path, "cats")
    ran = run("export", "cats", "-f", "html", terminal=True)
    assert (ran.code, ran.out) == (2, "")
    assert "the file holds its pictures and would fill the terminal\n" in ran.err
    assert "`-o chat.html` writes it; `idefics sessions show cats` prints the chat\n" in ran.err
    assert "A cat." in run("export", "cats", "-o", "-", terminal=True).out


@pytest.mark.parametrize("command", ["rm", "prune"])
def test_a_trial_of_a_removal_says_nothing_of_models(run: Run, command: str) -> None:
    text = " ".join(run(command, "--help").out.split())
    assert "--dry-run Show what would be removed, and remove nothing." in text
    assert "x>=0" not in text


def test_a_file_is_replaced_only_when_asked(run: Run, tmp_path: Path) -> None:
    make(tmp_path)
    path = tmp_path / "out.json"
    path.write_text("mine")
    ran = run("export", "last", "-o", str(path))
    assert tuple(ran) == (
        2,
        "",
        f"error: `{path}` exists already\nhint: `--overwrite` replaces it; or name another file\n",
    )
    assert path.read_text() == "mine"
    assert run("export", "last", "-o", str(path), "--overwrite", "-q").err == ""
    assert json.loads(path.read_text())["model"] == "demo"


def test_an_unknown_format_is_an_error(run: Run, tmp_path: Path) -> None:
    make(tmp_path)
    ran = run("export", "last", "-f", "pdf")
    assert tuple(ran) == (2, "", "error: --format must be md, json or html, not `pdf`\n")


def test_a_missing_picture_is_named_in_an_export(run: Run, tmp_path: Path) -> None:
    make(tmp_path)
    for path in (tmp_path / "idefics" / "pictures").iterdir():
        path.unlink()
    ran = run("export", "last")
    assert ran.code == 0
    assert ran.err == "warning: picture 1, `/photos/cat.png`, is no longer found\n"


def test_rm_removes_what_is_named_once(run: Run, tmp_path: Path) -> None:
    one, two, three = make(tmp_path, "one"), make(tmp_path, "two"), make(tmp_path, "three")
    trial = run("rm", "one", one, "two", "--dry-run")
    assert trial.err.startswith("note: would remove 2 sessions, ")
    assert len(store(tmp_path).list()) == 3
    ran = run("rm", "one", one, "two")
    assert (ran.code, ran.out) == (0, "")
    assert ran.err == trial.err.replace("would remove", "removed")
    assert [info.id for info in store(tmp_path).list()] == [three]
    assert two not in str(list((tmp_path / "idefics").rglob("*")))


def test_prune_takes_what_is_old_and_not_among_the_last(run: Run, tmp_path: Path) -> None:
    ids = [make(tmp_path, days_ago=days) for days in (1, 10, 20, 40)]
    named = make(tmp_path, "named", days_ago=100)

    def left() -> set[str]:
        return {info.id for info in store(tmp_path).list()}

    for arguments, gone in (
        (("--older-than", "5d", "--keep", "3"), ids[3:]),
        (("--older-than", "2w"), ids[2:]),
        (("--older-than", "2W", "--keep", "1"), ids[2:]),
        (("--keep", "1"), ids[1:]),
        (("--older-than", "12h"), ids),
        (("--older-than", "9w"), []),
    ):
        trial = run("prune", *arguments, "--dry-run", "--json")
        assert [record["id"] for record in trial.record] == gone
        assert left() == {*ids, named}
    ran = run("prune", "--older-than", "2w")
    assert [line.split()[0] for line in ran.out.splitlines()] == ["ID", *ids[2:]]
    assert ran.err.startswith("note: removed 2 sessions, ")
    assert left() == {*ids[:2], named}


def test_prune_leaves_what_is_open(run: Run, tmp_path: Path) -> None:
    session_id = make(tmp_path, days_ago=50)
    with store(tmp_path).open(session_id):
        assert tuple(run("prune", "--keep", "0")) == (0, "", "note: removed 0 sessions, 0 KiB\n")
    assert run("prune", "--keep", "0").err.startswith("note: removed 1 session, ")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), "error: prune needs --older-than or --keep\n"),
        (("--older-than", "soon"), "not `soon`\nhint: for example 12h, 30d or 8w\n"),
        (("--older-than", "6m"), "not `6m`\n"),
        (("--keep", "-1"), "error: --keep must be a whole number, 0 or more, not `-1`\n"),
        (("--keep", "many"), "error: --keep must be a whole number, 0 or more, not `many`\n"),
    ],
)
def test_wrong_usage_of_prune(run: Run, arguments: tuple[str, ...], error: str) -> None:
    ran = run("prune", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert error in ran.err
