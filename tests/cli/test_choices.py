"""`--choice` on `ask` and `caption`: the answer, its probabilities, and what is refused."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from PIL import Image

from idefics_cli.cli.services import Services
from idefics_cli.engine.schema.choices import choices_of
from tests.support.commands import World, run
from tests.support.fakes import FakeEngine

YES_NO = ("--choice", "yes", "--choice", "no")


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 6), "red").save(path)
    return str(path)


@pytest.mark.parametrize("is_terminal", [False, True])
def test_ask_answers_with_the_likeliest_choice(is_terminal: bool) -> None:
    world = World(FakeEngine("no"))
    words = ("ask", "Is it?", *YES_NO, *(["--stream"] if is_terminal else []))
    ran = run(*words, services=world.services, terminal=is_terminal)
    assert (ran.code, ran.out) == (0, "no\n")
    (request,) = world.engine.requests
    assert request.constraint is not None
    assert choices_of(request.constraint) == ["yes", "no"]
    assert request.messages[-1].text == "Is it?"


def test_json_has_the_probabilities_and_the_mass() -> None:
    world = World(FakeEngine("no"))
    record = run("ask", "Is it?", *YES_NO, "--json", services=world.services).record
    assert record["text"] == "no"
    assert record["probabilities"] == pytest.approx({"yes": 0.1, "no": 0.9})
    assert record["mass"] == pytest.approx(1.0)


def test_captions_have_a_column_for_each_choice(picture: str) -> None:
    world = World(FakeEngine("not sure"))
    choices = (*YES_NO, "--choice", "not sure", "--choice", "not-sure")
    words = ("caption", picture, *choices, "-f", "csv")
    ran = run(*words, services=world.services)
    assert ran.code == 0
    (row,) = csv.DictReader(io.StringIO(ran.out))
    names = ["choice", "confidence", "mass", "p_yes", "p_no", "p_not_sure", "p_not_sure_2"]
    assert [*row][1:8] == names
    values = ["not sure", "0.9", "1.0", "0.033333", "0.033333", "0.9", "0.033333"]
    assert [row[name] for name in names] == values


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--choice", "yes"), "one choice is no choice: give two or more"),
        (("--choice", "yes", "--choice", " "), "a choice is empty"),
        (("--choice", "yes", "--choice", "Yes."), "the choices `yes` and `Yes.` are one"),
        ((*YES_NO, "--regex", "a"), "--regex and --choice exclude each other"),
        ((*YES_NO, "--schema", "a"), "--schema and --choice exclude each other"),
    ],
)
def test_choices_that_cannot_be_used_are_an_error(words: tuple[str, ...], message: str) -> None:
    world = World(FakeEngine())
    ran = run("ask", "Is it?", *words, services=world.services)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"error: {message}\n")
    assert world.looked_up == []


def test_captions_of_choices_exclude_several_answers(picture: str) -> None:
    for words, name in (
        (("--ask", "a=What?"), "--ask"),
        (("--samples", "2", "--temperature", "1"), "--samples"),
    ):
        ran = run("caption", picture, *YES_NO, *words, services=World(FakeEngine()).services)
        assert ran.code == 2
        assert ran.err.startswith(f"error: --choice and {name} exclude each other\n")


def test_a_choice_that_the_context_cannot_hold_is_an_error() -> None:
    words = ("ask", "Which?", "-m", "demo", "--choice", "x" * 5000, "--choice", "no")
    ran = run(*words, services=Services(stdin=None))
    assert (ran.code, ran.out) == (2, "")
    assert "and the model has room for" in ran.err
