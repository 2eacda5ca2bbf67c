"""`--tags`: captions with words of a list alone, each once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from idefics_cli.core.errors import InputError
from idefics_cli.core.types import GenerationRequest, LoadSpec, Message, Sampling
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.schema.tags import tags_form
from tests.support.commands import Ran, World, run
from tests.support.fakes import FakeEngine
from tests.support.kernels import with_kernels

TAGS = ["1girl", "sky (blue)", "a.b|c", "red/green", "ä"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    Image.new("RGB", (8, 6), "red").save(tmp_path / "a.png")
    (tmp_path / "tags.txt").write_text("1girl\n\n sky  (blue), a.b|c\r\nred/green,ä\n1girl\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def caption(*words: str, answer: str) -> tuple[Ran, GenerationRequest]:
    world = World(FakeEngine(answer))
    ran = run("caption", "a.png", "--tags", "tags.txt", *words, services=world.services)
    return ran, world.engine.requests[0]


def test_a_caption_has_each_tag_once_and_the_prompt_names_them() -> None:
    ran, request = caption("--trigger", "ohwx", answer="ä, 1girl, ä, ä, 1girl")
    assert (ran.code, ran.out) == (0, "a.png\tohwx, ä, 1girl\n")
    assert request.messages[0].text.endswith(
        f"\nAnswer only with tags of this list, separated by commas: {', '.join(TAGS)}"
    )
    _, request = caption("--no-schema-prompt", answer="ä")
    assert "tags" not in request.messages[0].text


def test_a_long_list_is_not_in_the_prompt(folder: Path) -> None:
    (folder / "tags.txt").write_text("\n".join(f"tag{number}" for number in range(61)))
    _, request = caption(answer="tag1")
    assert request.messages[0].text.endswith("\nAnswer only with tags, separated by commas.")


def test_the_pattern_matches_tags_alone(folder: Path) -> None:
    constraint = tags_form("tags.txt").constraint
    for text in (*TAGS, "ä, 1girl", ", ".join(TAGS)):
        assert re.fullmatch(constraint.text, text)
    for text in ("", "a", "axb|c", "ä,1girl", "ä, ", ", ".join([*TAGS, "ä"])):
        assert not re.fullmatch(constraint.text, text)


def test_the_model_answers_with_tags_alone(folder: Path) -> None:
    form = tags_form("tags.txt")
    sampling = Sampling(temperature=2.0, max_new_tokens=200)
    spec = with_kernels(LoadSpec(repo="demo", family="idefics2", name="demo"))
    with LocalEngine(spec) as engine:
        request = GenerationRequest(
            (Message("user", ("Describe it.",)),), sampling, constraint=form.constraint
        )
        replies = engine.complete([engine.prepare(request) for _ in range(12)])
    assert {reply.finish for reply in replies} == {"stop"}
    for reply in replies:
        found = form.text_of(reply).split(", ")
        assert set(found) <= set(TAGS)
        assert len(found) == len(set(found))


def test_a_list_that_cannot_be_used_is_an_error(folder: Path) -> None:
    (folder / "empty.txt").write_text(" \n,\n")
    with pytest.raises(InputError, match=r"^the list of tags `empty\.txt` is empty$"):
        tags_form("empty.txt")
    with pytest.raises(InputError, match=r"^cannot read the list of tags `none\.txt`: No such"):
        tags_form("none.txt")
    words = ("caption", "a.png", "--tags", "tags.txt", "--schema", "a")
    ran = run(*words, services=World(FakeEngine()).services)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "error: --schema and --tags exclude each other\n"
