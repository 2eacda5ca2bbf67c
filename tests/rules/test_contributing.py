"""CONTRIBUTING names rooms, files, commands and definitions that exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from idefics_cli.cli.app import make_app
from tests.support.rooms import RANK

TOP = Path(__file__).parents[2]
PACKAGE = TOP / "idefics_cli"
TEXT = (TOP / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL))
PROGRAMS = {"idefics", "mypy", "pip", "pytest", "python", "ruff"}
PLACEHOLDERS = {"FOLDER", "FORMAT", "KIND", "NAME"}


def section(title: str) -> str:
    """Return the text below the heading *title*."""
    return TEXT.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def rows(text: str) -> list[list[str]]:
    """Return the cells of every table row of *text*, without the rows of the headings."""
    table = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    breaks = {number for number, row in enumerate(cells) if set(row[0]) == {"-"}}
    return [row for number, row in enumerate(cells) if not {number, number + 1} & breaks]


def is_path(word: str) -> bool:
    return bool(re.fullmatch(r"[\w./-]+", word)) and (
        "/" in word or word.endswith((".py", ".toml", ".txt", ".md"))
    )


def found(word: str) -> Path | None:
    """Return the file or folder that *word* names; of a placeholder, the folder it is in."""
    parts = word.rstrip("/").split("/")
    known = [part for part in parts if part.partition(".")[0] not in PLACEHOLDERS]
    if len(known) < len(parts) - 1:
        return None
    places = [top.joinpath(*known) for top in (TOP, PACKAGE)]
    return next((place for place in places if place.exists()), None)


def commands() -> Iterator[list[str]]:
    """Yield the words of every command, in a block or in a line."""
    for block in re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL):
        yield from (shlex.split(line) for line in block.splitlines())
    for quoted in QUOTED:
        words = shlex.split(quoted)
        if len(words) > 1 and (words[0] in PROGRAMS or words[0].startswith(".venv/")):
            yield words


@cache
def options(command: str) -> set[str]:
    root = get_command(make_app())
    assert isinstance(root, TyperGroup)
    parameters = root.commands[command].params
    return {option for p in parameters for option in [*p.opts, *p.secondary_opts]} | {"--help"}


def test_each_path_exists() -> None:
    words = {word for word in QUOTED if is_path(word)}
    programs = {word for word in words if word.startswith(".venv/")}
    assert {word.removeprefix(".venv/bin/") for word in programs} <= PROGRAMS
    assert {word for word in words - programs if found(word) is None} == set()


@pytest.mark.parametrize("words", [*commands()], ids=" ".join)
def test_a_command_can_be_run(words: list[str]) -> None:
    program = words[0].removeprefix(".venv/bin/")
    if program.startswith(".ci/"):
        assert (TOP / program).is_file()
        return
    assert program in PROGRAMS or program == "python3"
    if program == "idefics" and not words[1].startswith("-"):
        given = {word for word in words if word.startswith("-")}
        assert not given - options(words[1])
    if program == "python" and words[1] == "-m":
        assert importlib.util.find_spec(words[2]) is not None
    elif program in {"python", "pytest"}:
        assert all(found(word) is not None for word in words[1:] if is_path(word))


def test_the_markers_of_tests_exist() -> None:
    pyproject = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))
    markers = pyproject["tool"]["pytest"]["ini_options"]["markers"]
    named = re.findall(r"marker `(\w+)`", section("Tests"))
    assert {marker.partition(":")[0] for marker in markers} == set(named)


def test_the_map_has_every_room_with_its_rank() -> None:
    table = rows(section("The map"))
    listed = {row[1].strip("`").rstrip("/"): row[0] for row in table}
    packages = {path.parent for path in PACKAGE.rglob("__init__.py")} - {PACKAGE}
    # The map describes these by what their folders have in common.
    alike = {PACKAGE / "cli" / "commands", PACKAGE / "models" / "kernels"}
    rooms = {path.relative_to(PACKAGE).as_posix() for path in packages if path.parent not in alike}
    assert set(listed) == rooms, "the map in CONTRIBUTING lists every sub-package"
    assert {room: int(rank) for room, rank in listed.items() if rank} == RANK


@pytest.mark.parametrize(
    "row", rows(section("To add X, touch only Y")), ids=lambda row: str(row[0])
)
def test_what_a_row_names_is_defined_in_the_files_of_that_row(row: list[str]) -> None:
    quoted = re.findall(r"`([^`]+)`", row[1])
    files = [path for word in quoted if is_path(word) and (path := found(word)) is not None]
    source = "".join(path.read_text(encoding="utf-8") for path in files if path.is_file())
    for word in quoted:
        if not is_path(word) and word not in PLACEHOLDERS:
            assert re.search(rf"(^|class |\b){re.escape(word)}\b", source, re.MULTILINE), word


def test_the_glossary_has_thirty_terms_in_order_each_in_one_sentence() -> None:
    terms = rows(section("Glossary"))
    names = [row[0].strip("`").lower() for row in terms]
    assert len(names) >= 30
    assert names == sorted(names)
    for _, meaning in terms:
        assert meaning.endswith(".")
        assert ". " not in meaning


def test_every_link_inside_the_page_has_its_heading() -> None:
    anchors = {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-")
        for title in re.findall(r"^## (.+)$", TEXT, flags=re.MULTILINE)
    }
    links = re.findall(r"\(#([\w-]+)\)", TEXT)
    assert links
    assert set(links) <= anchors


def test_a_bug_report_asks_for_the_machine_and_the_command() -> None:
    form = (TOP / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text(encoding="utf-8")
    assert "`idefics doctor --json`" in form
    assert {"--json", "-m"} <= options("doctor")
    assert "exact command" in form


def test_the_workflow_runs_what_a_developer_runs() -> None:
    workflow = (TOP / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert "run: .ci/run\n" in workflow
    assert "secrets" not in workflow
