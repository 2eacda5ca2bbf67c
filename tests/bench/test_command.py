"""`idefics bench` with the real contenders and the built-in model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from idefics_cli.bench.measure import Measurement
from idefics_cli.bench.plain import Plain
from idefics_cli.bench.stage import CaptionTask
from idefics_cli.cli.commands.bench.captions import caption_all
from idefics_cli.core.types import GenerationRequest
from tests.support import commands
from tests.support.fakes import FakeEngine


def test_bench_compares_both_sides_with_the_built_in_model(tmp_path: Path) -> None:
    """The scenarios of fresh processes are left out: they take seconds each."""
    arguments = "decode chat vision caption -m demo --quick --rounds 1 --contexts 60 --count 2"
    ran = commands.run(
        "bench",
        *arguments.split(),
        *("--seconds", "0.1", "--threads", "1", "--json"),
        *("--output", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.png")),
    )
    assert ran.code == 0, ran.err
    record = json.loads(ran.out)
    assert {row["scenario"] for row in record["rows"]} == {"vision", "decode", "chat", "caption"}
    assert all(row["agreement"]["equal"] == 1.0 for row in record["rows"])
    assert all(row["ours"]["median"] > 0 and row["plain"]["median"] > 0 for row in record["rows"])
    assert (record["skipped"], record["agrees"], record["dtype"]) == ([], True, "float32")
    assert json.loads((tmp_path / "out.json").read_text()) == record
    assert Image.open(tmp_path / "out.png").width == 1200


def test_a_run_in_which_the_answers_differ_ends_with_3(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Plain.answer

    def other(self: Plain, requests: Sequence[GenerationRequest]) -> Measurement:
        outcome = answer(self, requests)
        return replace(outcome, tokens=tuple((*t[:-1], 5) for t in outcome.tokens))

    monkeypatch.setattr(Plain, "answer", other)
    ran = commands.run(
        "bench", "prefill", "-m", "demo", "--quick", "--rounds", "1", "--contexts", "40",
        "--threads", "1",
    )  # fmt: skip
    assert ran.code == 3
    assert "! prefill: context 40: the answers differ: 0.0% of tokens equal" in ran.out


def test_captions_are_compared_with_the_first_reply_even_if_it_goes_in_circles() -> None:
    engine = FakeEngine(lambda request: "a cat and " * 40)
    task = CaptionTask((Path("a.jpg"),), "Describe it.", max_new_tokens=24)
    assert list(caption_all(engine, task)) == [Path("a.jpg")]
    assert [request.sampling.temperature for request in engine.requests] == [0]


def test_the_edge_of_pictures_is_that_of_the_shape_and_not_of_the_built_in_model() -> None:
    ran = commands.run(
        "bench", "prefill", "--shape", "smolvlm-256m", "--layers", "1", "--longest-edge", "1024",
        "--no-splitting", "--quick", "--rounds", "1", "--contexts", "40", "--threads", "1",
    )  # fmt: skip
    assert ran.code == 0, ran.err
