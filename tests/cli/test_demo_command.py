"""`idefics demo DIR`."""

from __future__ import annotations

import json
from pathlib import Path

from idefics_cli.cli.services import Services
from idefics_cli.demo.wordings import KNOWN_QUESTIONS
from tests.support.commands import run

SERVICES = Services(environ={}, stdin=None)


def rows(folder: Path) -> list[dict[str, object]]:
    text = (folder / "metadata.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_the_written_pictures_are_listed_on_stdout_and_the_questions_on_stderr(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "new" / "samples"
    ran = run("demo", str(folder), "--count", "3", "--seed", "1", services=SERVICES)
    assert ran.code == 0
    assert ran.out.splitlines() == [str(folder / str(row["file_name"])) for row in rows(folder)]
    assert sorted(ran.out.splitlines()) == sorted(map(str, folder.glob("*.png")))
    known = {text for texts in KNOWN_QUESTIONS.values() for text in texts}
    assert sum(line.strip() in known for line in ran.err.splitlines()) == 5


def test_names_and_questions_fit_on_a_small_screen(tmp_path: Path) -> None:
    ran = run("demo", str(tmp_path), services=SERVICES)
    lines = [*ran.out.splitlines(), *ran.err.splitlines()]
    assert len(lines) == 15
    assert max(map(len, ran.err.splitlines())) < 80


def test_many_names_are_one_line_on_a_terminal_and_all_names_in_a_pipe(tmp_path: Path) -> None:
    shown = run("demo", str(tmp_path), "--count", "20", services=SERVICES, terminal=True).out
    assert shown == f"20 pictures in `{tmp_path}`: `scene-000.png` to `scene-019.png`\n"
    piped = run("demo", str(tmp_path), "--count", "20", services=SERVICES).out
    assert len(piped.splitlines()) == 20


def test_json_holds_the_truth_of_the_metadata_and_quiet_leaves_stderr_empty(tmp_path: Path) -> None:
    ran = run("demo", str(tmp_path), "--count", "2", "--json", "-q", services=SERVICES)
    assert (ran.code, ran.err) == (0, "")
    truth = [{"file_name": r["file_name"], "caption": r["caption"]} for r in rows(tmp_path)]
    assert ran.record["pictures"] == truth
    assert len(truth) == 2
    assert ran.record["known_questions"]["count"] == list(KNOWN_QUESTIONS["count"])


def test_without_a_seed_the_samples_are_those_of_seed_0(tmp_path: Path) -> None:
    for name, arguments in (("a", ()), ("b", ("--seed", "0")), ("c", ("--seed", "1"))):
        run("demo", str(tmp_path / name), "--count", "1", *arguments, services=SERVICES)
    assert rows(tmp_path / "a") == rows(tmp_path / "b") != rows(tmp_path / "c")


def test_a_folder_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    ran = run("demo", str(file), services=SERVICES)
    error = f"error: cannot write to `{file}`: `{file}` is not a folder\n"
    assert tuple(ran) == (2, "", f"{error}hint: name another folder\n")


def test_a_count_of_none_is_an_error(tmp_path: Path) -> None:
    ran = run("demo", str(tmp_path), "--count", "0", services=SERVICES)
    assert tuple(ran) == (2, "", "error: --count must be 1 or more, not `0`\n")
