"""Several captions of each picture: their seeds, the one encoding, and their rows."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.job import CaptionJob, CaptionQuestion, check_samples
from idefics_cli.caption.sinks import SINKS
from idefics_cli.caption.sinks.base import Existing, Target
from idefics_cli.core.errors import UsageError
from idefics_cli.core.types import Attachment, CaptionRecord, GenerationRequest, Sampling
from idefics_cli.demo.samples import write_samples
from idefics_cli.models.families.idefics2 import Idefics2
from idefics_cli.models.families.protocols import Model
from tests.support.captioning import NAMES, photo_job, run_job
from tests.support.commands import World, run
from tests.support.fakes import FakeEngine
from tests.support.outputs import Recorder

SEEDED = Sampling(temperature=1.0, seed=5)


def seed(request: GenerationRequest) -> str:
    return f"seed {request.sampling.seed}"


def sampled_job(samples: int, names: Sequence[str] = NAMES, *, batch_size: int = 4) -> CaptionJob:
    job = photo_job(names, batch_size=batch_size, sampling=SEEDED)
    return replace(job, samples=samples, patience_seconds=0)


def answers(job: CaptionJob) -> dict[str, tuple[tuple[str, str], ...]]:
    return {r.file_name: r.answers for r in run_job(job, FakeEngine(seed))}


def test_samples_depend_on_the_picture_and_the_seed_alone() -> None:
    together = answers(sampled_job(3))

    found = [text for pairs in together.values() for _, text in pairs]
    assert len(set(found)) == 3 * len(NAMES)
    assert all(
        [n for n, _ in pairs] == ["caption_1", "caption_2", "caption_3"]
        for pairs in together.values()
    )
    assert answers(sampled_job(3, NAMES[7:9], batch_size=1)) == {n: together[n] for n in NAMES[7:9]}
    other = answers(replace(sampled_job(3, NAMES[:1]), sampling=replace(SEEDED, seed=6)))
    assert not set(other[NAMES[0]]) & set(together[NAMES[0]])


def test_more_samples_begin_with_those_of_fewer() -> None:
    (one,) = run_job(sampled_job(1, NAMES[:1]), FakeEngine(seed))
    two, five = (answers(sampled_job(n, NAMES[:1]))[NAMES[0]] for n in (2, 5))

    assert two[0][1] == one.caption
    assert five[:2] == two


def test_samples_of_several_questions_stand_side_by_side() -> None:
    questions = (CaptionQuestion("What?", "subject"), CaptionQuestion("How?", "mood"))
    job = replace(sampled_job(2, NAMES[:1]), questions=questions)

    assert job.answer_columns == ("subject_1", "subject_2", "mood_1", "mood_2")
    asked = [r.messages[0].parts[1] for r in job.requests(job.pictures[0])]
    assert asked == ["What?", "What?", "How?", "How?"]


def test_unseeded_samples_are_drawn_anew() -> None:
    job = replace(sampled_job(2), sampling=replace(SEEDED, seed=None))

    assert {r.sampling.seed for r in job.requests(job.pictures[0])} == {None}


def test_greedy_samples_would_be_equal_and_are_refused() -> None:
    check_samples(1, Sampling())
    check_samples(2, SEEDED)
    with pytest.raises(UsageError, match="`--samples 2` needs a temperature above 0"):
        check_samples(2, Sampling(temperature=0.0))


def test_a_picture_is_encoded_once_and_no_batch_changes_its_samples(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles = 0
    encode_tiles = Idefics2.encode_tiles

    def counted(self: Idefics2, model: Model, batch: Tensor, *sizes: Any) -> Tensor:
        nonlocal tiles
        tiles += len(batch)
        return encode_tiles(self, model, batch, *sizes)

    monkeypatch.setattr(Idefics2, "encode_tiles", counted)
    write_samples(here / "scenes", count=3, seed=1)
    # The model has not learned to answer this, so that its samples differ.
    poem = ("-p", "Write a poem.", "--temperature", "2", "--seed", "5", "--max-new-tokens", "24")
    sampled = ("--samples", "4", *poem)
    captions: dict[str, list[list[str]]] = {}
    for batch_size in ("1", "3", "12"):
        tiles = 0
        ran = run("caption", "scenes", "-m", "demo", *sampled, "--batch-size", batch_size)
        assert (ran.code, tiles) == (0, 3)
        captions[batch_size] = [line.split("\t")[1:] for line in ran.out.splitlines()]

    assert min(len(set(texts)) for texts in captions["1"]) > 1, captions["1"]
    assert captions["1"] == captions["3"] == captions["12"]


TEXTS = ("a cat", "two\nlines")
RECORD = CaptionRecord(
    "a.jpg",
    caption="\n".join(TEXTS),
    finish="stop",
    answers=(("caption_1", TEXTS[0]), ("caption_2", TEXTS[1])),
)
FAILED = CaptionRecord("b.jpg", error="no", error_kind="missing")


def written(format_: str, path: Path, existing: Existing = "error") -> Path:
    pictures = tuple(CaptionItem(name, Attachment(name), name) for name in ("a.jpg", "b.jpg"))
    target = Target(
        Recorder(), path, existing, columns=("caption_1", "caption_2"), samples=2, pictures=pictures
    )
    with SINKS[format_](target) as sink:
        sink.write(RECORD)
        sink.write(FAILED)
    sink.finish()
    return path


def test_json_lines_have_a_list_of_captions(tmp_path: Path) -> None:
    good, bad = map(json.loads, written("jsonl", tmp_path / "a.jsonl").read_text().splitlines())

    assert (good["caption"], good["status"]) == (list(TEXTS), "ok")
    assert (bad["caption"], bad["status"]) == (None, "error")
    assert list(good)[:3] == ["file_name", "caption", "status"]


def test_tables_have_a_column_for_each_sample(tmp_path: Path) -> None:
    path = written("csv", tmp_path / "a.csv")
    with path.open(newline="") as file:
        good, bad = csv.DictReader(file)

    assert (good["caption_1"], good["caption_2"]) == TEXTS
    assert (bad["caption_1"], bad["caption_2"], bad["status"]) == ("", "", "error")
    assert written("tsv", tmp_path / "a.tsv").read_text() == "a.jpg\ta cat\ttwo\\nlines\n"


def test_a_text_file_has_a_line_for_each_sample(tmp_path: Path) -> None:
    written("txt", tmp_path / "texts")

    assert (tmp_path / "texts/a.txt").read_text() == "a cat\ntwo lines\n"


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed")
def test_parquet_has_a_list_of_captions_and_takes_more_rows(tmp_path: Path) -> None:
    from pyarrow import parquet

    path = written("parquet", tmp_path / "a.parquet")
    written("parquet", path, "append")

    found = parquet.read_table(path)
    assert str(found.schema.field("caption").type) == "list<element: string>"
    assert found.column("caption").to_pylist() == [list(TEXTS), None] * 2
    assert found.column("file_name").to_pylist() == ["a.jpg", "b.jpg"] * 2


@pytest.mark.parametrize("format_", ["jsonl", "csv"])
def test_a_run_continues_with_the_same_samples_and_their_number(format_: str, here: Path) -> None:
    Path("photos").mkdir()
    for name in NAMES[:4]:
        Path("photos", name).write_text(name)
    sampled = ("--samples", "3", "--temperature", "1", "--seed", "1", "--batch-size", "1")

    def caption(output: str, *words: str) -> int:
        words = ("caption", *sampled, "-o", f"{output}.{format_}", *words)
        return run(*words, services=World(FakeEngine(seed)).services).code

    assert caption("whole", "photos") == 0
    assert caption("parts", "photos/00.jpg", "photos/02.jpg") == 0
    assert caption("parts", "photos") == 0
    whole, parts = (Path(f"{name}.{format_}").read_text() for name in ("whole", "parts"))
    assert whole == parts
    assert caption("parts", "photos", "--samples", "2") == 2


def test_the_report_shows_every_sample(here: Path) -> None:
    Path("a.jpg").touch()
    sampled = ("--samples", "2", "--temperature", "1", "--seed", "1")
    engine = FakeEngine(seed)

    assert (
        run(
            "caption", "a.jpg", *sampled, "--report", "page.html", services=World(engine).services
        ).code
        == 0
    )
    page = Path("page.html").read_text()
    assert '["caption_1","caption_2"]' in page
    assert all(f"seed {request.sampling.seed}" in page for request in engine.requests)


def test_the_rehearsal_counts_the_samples(here: Path) -> None:
    Path("a.jpg").touch()
    sampled = ("--samples", "2", "--temperature", "1", "--dry-run")

    ran = run("caption", "a.jpg", *sampled, services=World(FakeEngine(seed)).services)
    assert "2 captions of each, with the prompt" in ran.out
