"""Rows become examples; what is wrong with the data is counted and named."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from idefics_cli.core.errors import IdeficsError, ImageError, UsageError
from idefics_cli.core.types import Attachment, Message, Part
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.training.data.options import ReadOptions
from idefics_cli.training.data.read import read_rows
from idefics_cli.training.data.row import LeftOut, RowResult, TrainingRow
from idefics_cli.training.examples import encode_row
from idefics_cli.training.labels import LabelledTokens
from idefics_cli.training.picture_files import TrainingPictures
from idefics_cli.training.pictures import KeptFeatures
from idefics_cli.training.preparing import PreparedExamples, describe, prepare_examples
from tests.support.prompts import open_engine
from tests.support.training_data import (
    CAPTIONS,
    PROMPT,
    SHAPES,
    name_of,
    write_lines,
    write_pictures,
)

Prepare = Callable[..., PreparedExamples]


@pytest.fixture(scope="module")
def engine(checkpoint: Callable[[str], Path]) -> Iterator[LocalEngine]:
    with open_engine(checkpoint("smolvlm2"), "smolvlm2") as opened:
        yield opened


@pytest.fixture
def pictures(engine: LocalEngine, tmp_path: Path) -> TrainingPictures:
    (tmp_path / "kept").mkdir()
    return TrainingPictures(engine.loaded.family, tmp_path / "kept", offline=True)


@pytest.fixture
def prepare(engine: LocalEngine, pictures: TrainingPictures) -> Prepare:
    def prepare(data: Path | list[RowResult], most_tokens: int | None = None) -> PreparedExamples:
        rows = data if isinstance(data, list) else read_rows(data, ReadOptions(PROMPT))
        return prepare_examples(
            rows, engine.loaded.family, pictures, most_tokens=most_tokens, threads=3
        )

    return prepare


def tokens_of(prepared: PreparedExamples) -> list[LabelledTokens]:
    return sorted((each.tokens for each in prepared.examples), key=lambda t: t.token_ids)


def row(key: str, answer: str, *sources: Path, question: str = PROMPT) -> TrainingRow:
    parts: list[Part] = [Attachment(str(source)) for source in sources]
    messages = (Message("user", (*parts, question)), Message("assistant", (answer,)))
    return TrainingRow(key, messages, (False, True))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_gives_the_same_tokens(shape: str, tmp_path: Path, prepare: Prepare) -> None:
    pytest.importorskip("pyarrow")
    plain = prepare(SHAPES["metadata.jsonl"](tmp_path / "plain"))
    prepared = prepare(SHAPES[shape](tmp_path / "other"))

    assert len(plain.examples) == len(CAPTIONS)
    assert tokens_of(prepared) == tokens_of(plain)
    assert {e.content for e in prepared.examples} == {e.content for e in plain.examples}
    assert prepared.summary.rows == len(CAPTIONS)
    assert prepared.summary.pictures == len(CAPTIONS)
    assert not prepared.summary.left_out


def test_examples_are_those_of_the_rows_one_by_one_in_order(
    tmp_path: Path, prepare: Prepare, pictures: TrainingPictures, engine: LocalEngine
) -> None:
    data = SHAPES["metadata.jsonl"](tmp_path / "a")
    prepared = prepare(data)

    for example, each in zip(prepared.examples, read_rows(data, ReadOptions(PROMPT)), strict=True):
        assert isinstance(each, TrainingRow)
        alone = encode_row(each, engine.loaded.family, pictures.preprocess)
        assert example.tokens == alone.tokens
        assert (example.key, example.answer) == (alone.key, alone.answer)
    summary = prepared.summary
    lengths = [len(example.tokens.token_ids) for example in prepared.examples]
    assert (summary.tokens, summary.longest) == (sum(lengths), max(lengths))
    labels = [label for example in prepared.examples for label in example.tokens.labels]
    assert summary.labelled == sum(label != -100 for label in labels) > 0


@pytest.mark.parametrize("shape", ["metadata.jsonl", "OpenAI", "parquet with bytes"])
def test_an_engine_and_each_epoch_see_the_pictures_that_were_prepared(
    shape: str, tmp_path: Path, prepare: Prepare, pictures: TrainingPictures, engine: LocalEngine
) -> None:
    pytest.importorskip("pyarrow")
    for example in prepare(SHAPES[shape](tmp_path / "a")).examples:
        again = [pictures.preprocess(source).picture for source in example.sources]
        assert tuple(again) == example.pictures
        assert engine.prepare(example.request).pictures == example.pictures
        assert all(os.path.isfile(source.source) for source in example.sources)


@pytest.mark.parametrize("name", ["flat.png", "large.jpg"])
def test_a_picture_of_another_kind_is_taken_as_the_engine_takes_it(
    name: str, tmp_path: Path, prepare: Prepare, engine: LocalEngine
) -> None:
    size = (60, 1) if name == "flat.png" else (800, 600)
    Image.radial_gradient("L").resize(size).convert("RGB").save(tmp_path / name)
    (example,) = prepare([row("a", "A picture.", tmp_path / name)]).examples

    assert engine.prepare(example.request).pictures == example.pictures


def test_faults_are_named_and_the_other_rows_are_kept(tmp_path: Path, prepare: Prepare) -> None:
    write_pictures(tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])
    table = write_lines(
        tmp_path / "rows.jsonl",
        {"image": "0.png", "caption": "A"},
        {"image": "missing.png", "caption": "A"},
        {"image": "text.png", "caption": "A"},
        {"image": "cut.png", "caption": "A"},
        {"image": "https://example.com/a.png", "caption": "A"},
        {"image": "1.png", "title": "A"},
        {"image": "1.png", "caption": ""},
        {"image": "1.png", "caption": "A", "status": "ok"},
        {"image": "1.png", "caption": None, "status": "error", "error": "gone"},
        {"image": "1.png", "caption": "A long", "finish": "length"},
    )
    prepared = prepare(table)

    assert [e.key for e in prepared.examples] == [f"{table}:1", f"{table}:8"]
    assert prepared.summary.rows == 10
    assert prepared.summary.left_out == {
        "unreadable picture": 4,
        "wrong row": 1,
        "no answer": 1,
        "failed caption": 1,
        "cut caption": 1,
    }
    assert [f.key for f in prepared.summary.faults] == [f"{table}:{n}" for n in range(2, 7)]
    for fault in prepared.summary.faults:
        assert describe(fault).startswith(f"{table}:")
    assert "missing.png" in describe(prepared.summary.faults[0])
    prepared.check("rows.jsonl", skips_bad=True)
    with pytest.raises(IdeficsError) as caught:
        prepared.check("rows.jsonl", skips_bad=False)
    first = describe(prepared.summary.faults[0])
    assert first.startswith(f"{table}:2: no such file: `")
    assert str(caught.value) == f"5 rows of `rows.jsonl` cannot be used; the first: {first}"
    assert [line.split(": ")[0] for line in prepared.summary.fault_lines] == [
        f"{table}:{number}" for number in range(2, 7)
    ]
    assert caught.value.hint == "mend them; or leave them out with `--skip-bad`"
    rows = [{"image": "0.png", name: "A"} for name in ("title", "caption")]
    wrong = write_lines(tmp_path / "wrong.jsonl", *rows)
    with pytest.raises(IdeficsError) as caught:
        prepare(wrong).check("wrong.jsonl", skips_bad=False)
    assert "the columns are `image`, `title`; or leave" in str(caught.value.hint)


def test_the_lines_of_a_text_file_are_one_row(tmp_path: Path, prepare: Prepare) -> None:
    write_pictures(tmp_path)
    (tmp_path / "0.txt").write_text("one\ntwo\nthree")
    summary = prepare(tmp_path).summary

    assert summary.rows == len(CAPTIONS)
    assert summary.left_out == {"further line": 2, "no caption": len(CAPTIONS) - 1}


def test_many_faults_are_counted_and_the_first_ten_named(tmp_path: Path, prepare: Prepare) -> None:
    prepared = prepare([row(f"row {n}", "A", tmp_path / f"{n}.png") for n in range(50)])

    lines = prepared.summary.fault_lines
    assert (len(lines), lines[-1]) == (11, "and 40 more rows that cannot be used")
    assert lines[3].startswith("row 3: no such file: `")
    assert lines[3].endswith("/3.png`")  # a long path is shortened in its middle
    for skips_bad in (False, True):
        with pytest.raises(UsageError, match=r"no row to train on \(unreadable picture: 50\)") as e:
            prepared.check("data", skips_bad=skips_bad)
        assert str(e.value).endswith(f"; the first: {lines[0]}")
        assert e.value.hint == "`--images DIR` says where the pictures are"


def test_where_pictures_are_is_asked_only_if_all_faults_are_missing_pictures(
    tmp_path: Path, prepare: Prepare
) -> None:
    good = row("a", "A block.", write_pictures(tmp_path) / "0.png")
    missing = row("b", "A block.", tmp_path / "missing.png")
    (tmp_path / "text.png").write_text("no picture")

    def hint(*rows: RowResult) -> str | None:
        with pytest.raises(IdeficsError) as caught:
            prepare(list(rows)).check("data", skips_bad=False)
        return caught.value.hint

    leave = "; or leave them out with `--skip-bad`"
    assert hint(good, missing) == f"`--images DIR` says where the pictures are{leave}"
    broken = row("c", "A block.", tmp_path / "text.png")
    assert hint(good, missing, broken) == f"mend them{leave}"


def test_rows_that_are_too_long_are_left_out_and_not_cut(tmp_path: Path, prepare: Prepare) -> None:
    data = SHAPES["metadata.jsonl"](tmp_path / "a")
    whole = prepare(data)
    lengths = [len(example.tokens.token_ids) for example in whole.examples]
    limit = sorted(lengths)[4]
    prepared = prepare(data, limit)

    kept = [e for e, length in zip(whole.examples, lengths, strict=True) if length <= limit]
    assert [e.tokens for e in prepared.examples] == [e.tokens for e in kept]
    assert prepared.summary.left_out == {"too long": len(CAPTIONS) - len(kept)}
    assert prepared.summary.fault_count == 0
    with pytest.raises(UsageError, match="has no row to train on") as caught:
        prepare(data, 10).check("a", skips_bad=False)
    assert caught.value.hint == "`--most-tokens` allows longer rows"


def test_equal_rows_and_other_answers_to_the_same_are_counted(
    tmp_path: Path, prepare: Prepare
) -> None:
    write_pictures(tmp_path)
    (tmp_path / "copy.png").write_bytes((tmp_path / "0.png").read_bytes())
    rows: list[RowResult] = [
        row("first", "A block.", tmp_path / "0.png"),
        row("repeated", "A block.", tmp_path / "copy.png"),
        row("contradicting", "A square.", tmp_path / "copy.png"),
        row("other question", "A square.", tmp_path / "0.png", question="What?"),
        row("other picture", "A square.", tmp_path / "1.png"),
    ]
    summary = prepare(rows).summary

    assert (summary.repeated, summary.contradictions) == (1, 1)
    assert summary.contradicting == ["contradicting"]
    assert summary.pictures == 2


def test_the_digest_is_that_of_the_examples(tmp_path: Path, prepare: Prepare) -> None:
    write_pictures(tmp_path)
    first = row("a", "A block.", tmp_path / "0.png")
    other = row("b", "A square.", tmp_path / "1.png")
    digests = {prepare(rows).digest for rows in ([first], [other], [first, other], [other, first])}

    red, blue = (tmp_path / f"{colour}.png" for colour in ("red", "blue"))
    for path in (red, blue):
        Image.new("RGB", (60, 60), path.stem).save(path)
    assert prepare([row("c", "A.", red)]).digest != prepare([row("c", "A.", blue)]).digest
    assert len(digests) == 4
    assert prepare([first, LeftOut("c", "no answer")]).digest in digests


def test_pictures_that_are_no_files_are_written_once(
    tmp_path: Path, prepare: Prepare, pictures: TrainingPictures
) -> None:
    prepared = prepare(SHAPES["OpenAI"](tmp_path / "a"))
    kept = list((tmp_path / "kept").iterdir())

    assert len(kept) == len(CAPTIONS) // 2
    sources = {source.source for example in prepared.examples for source in example.sources}
    assert {str(path) for path in kept} < sources
    assert {len(source) < 300 for source in sources} == {True}
    assert name_of(1) in {os.path.basename(source) for source in sources}


def test_a_picture_that_changes_during_the_training_is_an_error(
    tmp_path: Path, prepare: Prepare, pictures: TrainingPictures
) -> None:
    write_pictures(tmp_path)
    (example,) = prepare([row("a", "A block.", tmp_path / "0.png")]).examples
    (tmp_path / "1.png").replace(tmp_path / "0.png")

    with pytest.raises(ImageError, match=r"0\.png` has changed since the training began"):
        pictures.preprocess(example.sources[0])


def test_a_video_is_taken_as_the_engine_takes_it(
    tmp_path: Path, prepare: Prepare, engine: LocalEngine, pictures: TrainingPictures
) -> None:
    clips = pytest.importorskip("tests.support.clips")
    (tmp_path / "a.mp4").write_bytes(clips.Clip().encode())
    (tmp_path / "a.txt").write_text("It gets brighter.")
    options = ReadOptions(PROMPT, takes_videos=True)
    (example,) = prepare(list(read_rows(tmp_path, options))).examples

    assert example.pictures[0].moments is not None
    assert engine.prepare(example.request).pictures == example.pictures
    assert pictures.preprocess(example.sources[0]).picture == example.pictures[0]
    asked = engine.loaded.family.encode([example.request], [example.pictures])
    prompt = asked["input_ids"][0].tolist()
    assert example.tokens.token_ids[: len(prompt)] == prompt
    loaded = engine.loaded
    features = KeptFeatures(loaded.model, loaded.family, pictures.preprocess, folder=tmp_path)
    ((frames,),) = features.features_of([example])
    assert len(frames) == example.tokens.token_ids.count(loaded.family.image_id) > 1
    features.close()


def test_a_model_without_videos_names_a_video_as_one(
    tmp_path: Path, checkpoint: Callable[[str], Path]
) -> None:
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(200))
    with open_engine(checkpoint("idefics2"), "idefics2") as opened:
        family = opened.loaded.family
        pictures = TrainingPictures(family, tmp_path, offline=True)
        rows: list[RowResult] = [row("a", "A block.", tmp_path / "a.mp4")]
        prepared = prepare_examples(rows, family, pictures)

    assert "it is a video" in describe(prepared.summary.faults[0])


def test_a_row_without_pictures_is_taken(prepare: Prepare) -> None:
    messages = (Message("user", ("Hello",)), Message("assistant", ("Hi!",)))
    prepared = prepare([TrainingRow("chat", messages, (False, True))])

    assert [e.answer for e in prepared.examples] == ["Hi!"]
    assert prepared.summary.pictures == 0
