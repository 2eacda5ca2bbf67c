"""The built-in model sees, and options for speed or memory do not change its answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from idefics_cli.core.types import (
    Attachment,
    Completion,
    DtypeName,
    GenerationRequest,
    LoadSpec,
    Message,
    Quantization,
    Sampling,
)
from idefics_cli.demo.samples import write_samples
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.models.hub.facts import demo_folder
from tests.support.kernels import with_kernels
from tests.support.reference import auto_processor

SCENES = 16
SPEC = with_kernels(LoadSpec(repo="demo", family="idefics2", name="demo"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """Return the metadata of scenes that no training picture shows."""
    folder = tmp_path_factory.mktemp("scenes")
    write_samples(folder, count=SCENES, seed=11)
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        json.loads(line) | {"path": str(folder / json.loads(line)["file_name"])} for line in lines
    ]


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    with LocalEngine(SPEC) as loaded:
        yield loaded


def question(row: dict[str, object], text: str) -> GenerationRequest:
    return GenerationRequest((Message("user", (Attachment(str(row["path"])), text)),))


def questions(rows: list[dict[str, object]]) -> list[tuple[GenerationRequest, str]]:
    """Return the caption question and two other questions of each row, with the true answers."""
    asked = []
    for row in rows:
        asked.append((question(row, "Describe this image."), str(row["caption"])))
        others = row["questions"]
        assert isinstance(others, list)
        asked += [(question(row, o["question"]), o["answer"]) for o in others[:2]]
    return asked


def answer(
    engine: LocalEngine, requests: list[GenerationRequest], *, batch: int = 16
) -> list[Completion]:
    prepared = [engine.prepare(request) for request in requests]
    return [
        completion
        for start in range(0, len(prepared), batch)
        for completion in engine.complete(prepared[start : start + batch])
    ]


def share_right(answers: list[Completion], truth: list[str]) -> float:
    return sum(a.text == t for a, t in zip(answers, truth, strict=True)) / len(truth)


def test_captions_and_answers_are_true(engine: LocalEngine, rows: list[dict[str, object]]) -> None:
    asked = questions(rows)
    answers = answer(engine, [request for request, _ in asked])
    assert share_right(answers, [truth for _, truth in asked]) >= 0.97
    assert {a.finish for a in answers} == {"stop"}


def test_a_batch_gives_what_each_gives_alone(
    engine: LocalEngine, rows: list[dict[str, object]]
) -> None:
    requests = [request for request, _ in questions(rows)][:20]
    alone = answer(engine, requests, batch=1)
    together = answer(engine, requests, batch=20)
    assert [a.token_ids for a in together] == [a.token_ids for a in alone]


def test_streamed_answers_are_the_whole_answers(
    engine: LocalEngine, rows: list[dict[str, object]]
) -> None:
    for request, truth in questions(rows)[:6]:
        pieces = [chunk.text for chunk in engine.stream(engine.prepare(request))]
        assert "".join(pieces) == truth
        assert len(pieces) > 1


def test_a_second_turn_still_sees_the_picture(
    engine: LocalEngine, rows: list[dict[str, object]]
) -> None:
    right = asked = 0
    for row in rows:
        first = question(row, "Describe this image.")
        (caption,) = answer(engine, [first])
        later = Message("user", ("What color is the background?",))
        request = GenerationRequest((*first.messages, Message("assistant", (caption.text,)), later))
        (second,) = answer(engine, [request])
        background = str(row["caption"]).rsplit(" background", 1)[0].rsplit(" ", 1)[1]
        assert second.reused_tokens >= caption.prompt_tokens
        asked += 1
        right += second.text == f"{background.capitalize()}."
    assert right >= 0.95 * asked


def test_two_pictures_keep_their_order(engine: LocalEngine, rows: list[dict[str, object]]) -> None:
    right = 0
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    for one, other in pairs:
        parts = (Attachment(str(one["path"])), Attachment(str(other["path"])))
        for name, row in (("first", one), ("second", other)):
            request = GenerationRequest((Message("user", (*parts, f"Describe the {name} image.")),))
            right += answer(engine, [request])[0].text == row["caption"]
    assert right >= 0.95 * 2 * len(pairs)


def test_without_the_picture_the_answers_are_wrong(
    engine: LocalEngine, rows: list[dict[str, object]]
) -> None:
    requests = [GenerationRequest((Message("user", ("Describe this image.",)),)) for _ in rows]
    assert share_right(answer(engine, requests), [str(r["caption"]) for r in rows]) <= 0.1


@pytest.mark.parametrize(
    ("dtype", "quantization", "count"),
    [
        ("bfloat16", "none", 24),
        ("float32", "4bit", 24),
        ("float32", "8bit", 48),
        ("bfloat16", "8bit", 24),
    ],
)
def test_smaller_weights_still_see(
    dtype: DtypeName, quantization: Quantization, count: int, rows: list[dict[str, object]]
) -> None:
    pytest.importorskip("bitsandbytes")
    spec = LoadSpec(
        repo="demo",
        family="idefics2",
        dtype=dtype,
        quantization=quantization,
    )
    asked = questions(rows)[:count]
    with LocalEngine(with_kernels(spec)) as engine:
        answers = answer(engine, [request for request, _ in asked])
    assert share_right(answers, [truth for _, truth in asked]) >= 0.95


def test_a_shorter_limit_cuts_the_same_caption(
    engine: LocalEngine, rows: list[dict[str, object]]
) -> None:
    request = question(rows[0], "Describe this image.")
    cut = GenerationRequest(request.messages, Sampling(max_new_tokens=4))
    (whole,), (short,) = answer(engine, [request]), answer(engine, [cut])
    assert (short.finish, short.token_ids) == ("length", whole.token_ids[:4])


def test_pictures_of_other_sizes_and_formats_say_the_same(
    engine: LocalEngine, rows: list[dict[str, object]], tmp_path: Path
) -> None:
    from PIL import Image, ImageOps

    right = 0
    for index, row in enumerate(rows[:8]):
        with Image.open(str(row["path"])) as image:
            large = image.convert("RGB").resize((image.width * 5, image.height * 5))
        path = tmp_path / f"{index}.jpg"
        exif = Image.Exif()
        exif[0x0112] = 6
        # The picture is stored on its side, with the EXIF tag that turns it upright.
        large.rotate(90, expand=True).save(path, exif=exif, quality=92)
        with Image.open(path) as stored:
            assert ImageOps.exif_transpose(stored).size == large.size
        (said,) = answer(engine, [question({"path": path}, "Describe this image.")])
        right += said.text == row["caption"]
    assert right >= 7


@pytest.mark.parametrize(
    "texts",
    [
        ("Describe this image.",),
        (" Describe this image.",),
        ("\nDescribe it.",),
        ("...what?",),
        ("1 or 2?",),
        ("<b>?",),
        ("Describe this image.", "How many shapes are there?", "é?"),
    ],
)
@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_prompts_have_the_tokens_that_the_librarys_processor_gives(
    texts: tuple[str, ...], pictures: int, rows: list[dict[str, object]], engine: LocalEngine
) -> None:
    # Unlike those of the tiny models, this tokenizer has a token for a single space.
    attachments = [Attachment(str(row["path"])) for row in rows[:pictures]]
    messages = [Message("user", (*attachments, texts[0]))]
    for text in texts[1:]:
        messages += [Message("assistant", ("Two.",)), Message("user", (text,))]
    prepared = engine.prepare(GenerationRequest(tuple(messages)))
    ours = engine.loaded.family.encode([prepared.request], [prepared.pictures])["input_ids"]

    processor = auto_processor(demo_folder(), "idefics2")
    images = [Image.open(a.source).convert("RGB") for a in attachments]
    conversation = [
        {
            "role": message.role,
            "content": [
                {"type": "image"}
                if isinstance(part, Attachment)
                else {"type": "text", "text": part}
                for part in message.parts
            ],
        }
        for message in messages
    ]
    rendered = processor.apply_chat_template(conversation, add_generation_prompt=True)
    theirs = processor(text=[rendered], images=[images] if images else None, return_tensors="pt")[
        "input_ids"
    ]
    assert ours.tolist() == theirs.tolist()
