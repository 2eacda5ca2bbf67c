"""Every family answers requests in batches as one by one: several pictures, turns, text alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from idefics_cli.core.types import Attachment, GenerationRequest, Message, Mode, Part, Sampling
from idefics_cli.engine.protocol import Engine
from tests.support.commands import run
from tests.support.prompts import open_engine
from tests.support.tiny import KINDS

QUESTION = "What is in this image?"
SAMPLING = Sampling(max_new_tokens=6)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, size in {"a.png": (90, 60), "b.png": (40, 75)}.items():
        Image.linear_gradient("L").resize(size).convert("RGB").save(name)
    return tmp_path


def reply(engine: Engine, *messages: Message, complete: bool = False) -> str:
    mode: Mode = "complete" if complete else "chat"
    request = GenerationRequest(messages, SAMPLING, mode)
    return engine.complete([engine.prepare(request)])[0].text


def answered(folder: Path, rows: list[dict[str, Any]]) -> list[Any]:
    Path("r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    limits = ("--max-new-tokens", "6", "--batch-size", "4", "--dtype", "float32")
    ran = run("batch", "r.jsonl", "-m", str(folder), *limits)
    assert ran.code == 0, ran.err
    return [json.loads(line)["reply"] for line in ran.out.splitlines()]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.endswith("base")])
def test_a_model_that_chats(kind: str, checkpoint: Callable[[str], Path]) -> None:
    a, b = Attachment("a.png"), Attachment("b.png")
    turns: list[dict[str, Any]] = [
        {"from": "human", "value": f"<image>\n{QUESTION}"},
        {"from": "gpt", "value": "A red circle."},
        {"from": "human", "value": "And here? <image>"},
    ]
    rows: list[dict[str, Any]] = [
        {"prompt": QUESTION, "image": "a.png"},
        {"prompt": "Which one is larger?", "images": ["a.png", "b.png"]},
        {"prompt": "What can you do?"},
        {"conversations": turns, "images": ["b.png", "a.png"]},
    ]

    def user(*parts: Part) -> Message:
        return Message("user", parts)

    rows_at_once = answered(checkpoint(kind), rows)
    with open_engine(checkpoint(kind), kind) as engine:
        assert rows_at_once == [
            reply(engine, user(a, QUESTION)),
            reply(engine, user(a, b, "Which one is larger?")),
            reply(engine, user("What can you do?")),
            reply(
                engine,
                user(b, QUESTION),
                Message("assistant", ("A red circle.",)),
                user("And here? ", a),
            ),
        ]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.endswith("base")])
def test_a_base_model(kind: str, checkpoint: Callable[[str], Path]) -> None:
    a, b = Attachment("a.png"), Attachment("b.png")
    rows: list[dict[str, Any]] = [
        {"prompt": "In this image,", "image": "a.png"},
        {"prompt": "<image> is larger than <image>", "images": ["a.png", "b.png"]},
        {"prompt": "Once upon a time"},
    ]
    rows_at_once = answered(checkpoint(kind), rows)
    with open_engine(checkpoint(kind), kind) as engine:
        assert rows_at_once == [
            reply(engine, Message("user", parts), complete=True)
            for parts in (
                (a, " In this image,"),
                (a, " is larger than ", b),
                ("Once upon a time",),
            )
        ]
