"""How the built-in model is made: tokenizer, labels, data, update, one tiny run."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from idefics_cli.core.errors import EXIT_FAILURE, EXIT_USAGE
from idefics_cli.demo.build import (
    PATCH,
    build_model,
    build_processor,
)
from idefics_cli.demo.conversations import pair_conversation, single_conversation
from idefics_cli.demo.drawing import draw, render
from idefics_cli.demo.questions import Question
from idefics_cli.demo.scenes import COLORS, SHAPES, scene_for_split
from idefics_cli.demo.training import train
from idefics_cli.demo.training.dataset import BatchSource, Pictures, loosened, render_split, resized
from idefics_cli.demo.training.encoding import IGNORED, Encoder, LabelledConversation, collate
from idefics_cli.demo.training.evaluate import WEIGHTS
from idefics_cli.demo.training.losses import AuxiliaryHeads, compute_losses, patch_loss
from idefics_cli.demo.training.truth import CLASSES, FACETS, patch_labels, slot_targets
from idefics_cli.demo.training.watch import WATCHED, share_right, watch
from idefics_cli.demo.training.worker import LOG, save
from idefics_cli.models.families.protocols import Processor
from idefics_cli.models.families.spec import END_OF_UTTERANCE, IMAGE_TOKEN
from idefics_cli.training.optimizer import Buffers, Layout, Muon, ShardedOptimizer, orthogonalized
from idefics_cli.training.schedule import Schedule
from tests.support.reference import auto_processor

PICTURES = 200


@pytest.fixture(scope="module")
def processor() -> Processor:
    return auto_processor(WEIGHTS, "idefics2")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    render_split(folder, "combo", 40)
    render_split(folder, "train", PICTURES)
    return folder


# The files that training starts from


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the saved processor and model before training."""
    folder = tmp_path_factory.mktemp("untrained")
    processor = build_processor()
    save(build_model(processor.tokenizer), processor, folder)
    return folder


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "processor_config.json"])
def test_what_is_built_from_nothing_is_what_is_shipped(untrained: Path, name: str) -> None:
    assert (untrained / name).read_text() == (WEIGHTS / name).read_text()


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_settings_built_from_nothing_are_those_shipped(untrained: Path, name: str) -> None:
    built, shipped = (json.loads((f / name).read_text()) for f in (untrained, WEIGHTS))
    for settings in (built, shipped):
        settings.pop("transformers_version", None)

    assert built == shipped


def test_the_shipped_model_is_small_and_readable_by_all() -> None:
    files = list(WEIGHTS.iterdir())

    assert sum(path.stat().st_size for path in files) < 12 * 2**20
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in files)


def test_the_tokenizer_keeps_what_it_does_not_know(processor: Processor) -> None:
    for text in ("Zürich é 漢字!", "Is there a red star?", "a\nb", "<0x41> 12"):
        ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        decoded = processor.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

        assert decoded == text


@pytest.mark.parametrize("settings", [{}, {"legacy": True}, {"legacy": False}])
def test_the_tokenizer_is_that_of_its_file_whatever_legacy_says(
    settings: dict[str, bool],
) -> None:
    from tokenizers import Tokenizer

    loaded = auto_processor(WEIGHTS, "idefics2", **settings).tokenizer
    raw = Tokenizer.from_file(str(WEIGHTS / "tokenizer.json"))
    text = f"User: What do you see?{END_OF_UTTERANCE}\nAssistant: A cat.{END_OF_UTTERANCE}\nA"
    ids = loaded(text)["input_ids"]
    end = ids.index(loaded.convert_tokens_to_ids(END_OF_UTTERANCE))

    assert ids == raw.encode(text).ids
    assert loaded.convert_ids_to_tokens(ids[end + 1 : end + 3]) == ["▁", "\n"]


# The label rule


def conversations() -> list[tuple[LabelledConversation, list[int]]]:
    """Return conversations with 0, 1 and 2 images, before and after the question."""
    rng = random.Random(0)
    found = [(LabelledConversation((Question("t", "Hello!", "Hello! Show me an image."),), 0), [])]
    for i in range(12):
        scenes = (scene_for_split("train", i), scene_for_split("train", i + 1))
        one = LabelledConversation(tuple(single_conversation(scenes[0], rng)), 1, i % 2 == 0)
        two = LabelledConversation(tuple(pair_conversation(scenes, rng)), 2, i % 3 == 0)
        found += [(one, [i]), (two, [i, i + 1])]
    return found


def processed(
    processor: Processor, messages: list[dict[str, object]], shown: Sequence[int], *, prompt: bool
) -> list[int]:
    """Return the ids that template, processor and tokenizer give."""
    text = processor.apply_chat_template(messages, add_generation_prompt=prompt)
    # The template ends a conversation with a newline; there is nothing to learn in it.
    images = [[render(scene_for_split("train", i)) for i in shown]] if shown else None
    inputs = processor(text=text.removesuffix("\n"), images=images, return_tensors="pt")
    ids: list[int] = inputs["input_ids"][0].tolist()
    return ids


@pytest.mark.parametrize(("conversation", "shown"), conversations())
def test_only_answers_and_their_end_are_learned(
    processor: Processor, conversation: LabelledConversation, shown: list[int]
) -> None:
    """The other route: the template of the first n turns, with and without the answer."""
    messages = conversation.messages()
    expected = [IGNORED] * len(processed(processor, messages, shown, prompt=False))
    for turn in range(len(conversation.turns)):
        asked = processed(processor, messages[: 2 * turn + 1], shown, prompt=True)
        answered = processed(processor, messages[: 2 * turn + 2], shown, prompt=False)
        assert answered[: len(asked)] == asked
        expected[len(asked) : len(answered)] = answered[len(asked) :]

    encoded = Encoder(processor).encode(conversation)

    assert encoded.token_ids == processed(processor, messages, shown, prompt=False)
    assert encoded.labels == expected
    assert [a.task for a in encoded.answers] == [turn.task for turn in conversation.turns]


def test_padding_and_images_are_not_learned(processor: Processor) -> None:
    batch = collate([Encoder(processor).encode(each) for each, _ in conversations()])
    image = processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)

    assert (batch.labels[batch.attention_mask == 0] == IGNORED).all()
    assert (batch.attention_mask == 0).any()
    assert (batch.labels[batch.input_ids == image] == IGNORED).all()
    learned = batch.labels != IGNORED
    assert (batch.labels[learned] == batch.input_ids[learned]).all()
    end = processor.tokenizer.convert_tokens_to_ids(END_OF_UTTERANCE)
    turns = [len(each.turns) for each, _ in conversations()]
    assert (batch.labels == end).sum(1).tolist() == turns


# Pictures and their dense labels


def test_resizing_gives_what_the_image_processor_gives(processor: Processor) -> None:
    for seed in range(25):
        image = render(scene_for_split("train", seed))
        inputs = processor.image_processor([[image]], return_tensors="pt")  # type: ignore[operator]
        expected = inputs["pixel_values"][0, 0].permute(1, 2, 0).numpy()
        ours = np.asarray(resized(image)) / 127.5 - 1

        assert ours.shape == expected.shape
        assert np.abs(ours - expected).max() < 1e-5


def test_batches_are_what_the_processor_makes_of_the_same_pictures(
    processor: Processor, data: Path
) -> None:
    pictures = Pictures(data, "train")
    groups = [[3], [5, 8]]
    values, mask = pictures.pixels(groups)
    images = [[draw(pictures.scene(i), jpeg=True).image for i in group] for group in groups]
    inputs = processor.image_processor(images, return_tensors="pt")  # type: ignore[operator]

    assert torch.allclose(values, inputs["pixel_values"], atol=1e-5)
    assert torch.equal(mask, inputs["pixel_attention_mask"])


def test_rendered_pictures_are_used_again_unless_their_number_differs(tmp_path: Path) -> None:
    render_split(tmp_path, "combo", 3)
    path = tmp_path / "combo-pixels.npy"
    before = path.stat().st_mtime_ns
    render_split(tmp_path, "combo", 3)
    assert path.stat().st_mtime_ns == before

    render_split(tmp_path, "combo", 4)
    assert len(Pictures(tmp_path, "combo")) == 4


def test_patches_are_labelled_with_what_is_there() -> None:
    for seed in range(40):
        scene = scene_for_split("train", seed)
        drawing = draw(scene)
        small = resized(drawing.image)
        labels = patch_labels(scene, drawing, width=small.width, height=small.height)
        rows, columns = small.height // PATCH, small.width // PATCH

        assert (labels[rows:] == -1).all()
        assert (labels[:, columns:] == -1).all()
        assert (labels[:rows, :columns] >= 0).all()
        for thing in scene.objects:
            row = min(rows - 1, int(thing.y * small.height / scene.height / PATCH))
            column = min(columns - 1, int(thing.x * small.width / scene.width / PATCH))
            here = labels[row, column].tolist()
            assert here[0] == 1 + SHAPES.index(thing.shape)
            assert here[1] == 1 + list(COLORS).index(thing.color)
            assert here[3] == 1 + thing.is_large
            assert here[4] == 1 + 3 * thing.row + thing.column
        if scene.lettering:
            named = set(labels[:rows, :columns, 5].ravel().tolist()) - {0}
            assert len(named) == len(set(scene.lettering.text))


def test_slots_know_exactly_the_classes_of_their_cells() -> None:
    scene = scene_for_split("train", 5)
    drawing = draw(scene)
    labels = patch_labels(scene, drawing, width=112, height=112)
    targets = slot_targets(labels)
    offsets = np.cumsum((0, *FACETS[:-1]))
    for cell in range(16):
        row, column = divmod(cell, 4)
        patches = labels[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(
            -1, len(FACETS)
        )
        expected = {
            int(offset + k) for patch in patches for offset, k in zip(offsets, patch, strict=True)
        }

        assert set(np.flatnonzero(targets[cell]).tolist()) == expected


def test_the_source_keeps_to_the_share_of_its_process(data: Path, processor: Processor) -> None:
    pictures = Pictures(data, "train")
    seen: list[list[list[int]]] = []

    class Recording(Pictures):
        def pixels(self, groups: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
            seen.append([list(group) for group in groups])
            return pictures.pixels(groups)

    source = BatchSource(Recording(data, "train"), Encoder(processor), seed=0, rank=1, processes=2)
    for _ in range(40):
        source.take(10)
    groups = [group for batch in seen for group in batch]
    alone = [group[0] for group in groups if len(group) == 1]

    assert {len(group) for group in groups} == {0, 1, 2}
    assert all(index % 2 == 1 for index in alone)
    # Every picture of the share comes once before one comes twice, in pairs or alone.
    assert len(set(alone[:60])) == 60


def test_loosened_questions_lose_at_most_mark_and_capital() -> None:
    rng = random.Random(0)
    forms = [loosened("What is it?", rng) for _ in range(1000)]

    assert set(forms) == {"What is it?", "What is it", "what is it?", "what is it"}
    assert 0.7 < forms.count("What is it?") / 1000 < 0.9


# Losses and update


def test_the_loss_of_the_answers_is_that_of_the_library(data: Path, processor: Processor) -> None:
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(WEIGHTS, dtype=torch.float32)
    source = BatchSource(Pictures(data, "train"), Encoder(processor), seed=0)
    batch = source.take(6)
    with torch.no_grad():
        ours = compute_losses(model, AuxiliaryHeads(), batch).language
        library = model(
            input_ids=batch.tokens.input_ids,
            attention_mask=batch.tokens.attention_mask,
            pixel_values=batch.pixel_values,
            pixel_attention_mask=batch.pixel_mask,
            labels=batch.tokens.labels,
        ).loss

    assert ours is not None
    assert torch.isclose(ours, library, rtol=1e-4)


def test_patches_outside_the_picture_do_not_count() -> None:
    logits = torch.randn(2, 5, CLASSES)
    targets = torch.stack([torch.randint(0, n, (2, 5)) for n in FACETS], dim=-1)
    shorter = patch_loss(logits[:, :4], targets[:, :4])
    targets[:, 4] = -1

    assert torch.isclose(patch_loss(logits, targets), shorter)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape)
    values = torch.linalg.svdvals(orthogonalized(matrices))
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    alignment = (orthogonalized(matrices) * (left @ right)).sum((1, 2)) / min(shape)

    assert 0.5 < values.min() < values.max() < 1.3
    assert (alignment > 0.7).all()


def test_our_muon_takes_the_steps_of_torchs() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(8, 5), torch.empty(8, 5)
    theirs.copy_(ours)
    start = ours.clone()
    muon = Muon([ours], weight_decay=0.05)
    theirs.requires_grad_()
    reference = torch.optim.Muon(
        [theirs], lr=0.1, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for _ in range(4):
        gradient = torch.randn(8, 5)
        theirs.grad = gradient.clone()
        reference.step()
        muon.step([gradient], learning_rate=0.1)

    # torch's iteration is in bfloat16.
    moved = (theirs.detach() - start).norm()
    assert (ours - theirs.detach()).norm() < 0.02 * moved


def small_parameters() -> dict[str, nn.Parameter]:
    torch.manual_seed(3)
    shapes = {
        "model.text_model.layer.weight": (6, 4),
        "model.text_model.embed_tokens.weight": (9, 4),
        "model.vision_model.layer.weight": (4, 6),
        "model.vision_model.other.weight": (4, 6),
        "model.vision_model.norm.bias": (4,),
        "heads.patches.weight": (5, 4),
    }
    return {name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}


def optimizers(processes: int) -> tuple[list[ShardedOptimizer], list[dict[str, nn.Parameter]]]:
    """Return the optimizers of *processes* threads that share one memory."""
    made: list[ShardedOptimizer | None] = [None] * processes
    parameters = [small_parameters() for _ in range(processes)]
    count = sum(p.numel() for p in parameters[0].values())
    buffers = Buffers.allocate(count, processes=1, dtype=torch.float32, device="cpu")
    buffers = replace(
        buffers,
        gradients=torch.zeros(processes, count),
        squares=torch.zeros(processes, dtype=torch.float64),
    )
    barrier = threading.Barrier(processes)

    def make(rank: int) -> None:
        made[rank] = ShardedOptimizer(parameters[rank], buffers, rank=rank, barrier=barrier)

    in_threads(processes, make)
    return [each for each in made if each is not None], parameters


def in_threads(count: int, work: object) -> None:
    assert callable(work)
    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)


def after_steps(
    processes: int, *, with_language: bool = True, scales: Sequence[float] = (0.1, 0.1, 0.1)
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Return weights and gradient norms of steps whose mean gradients are the same each time."""
    made, parameters = optimizers(processes)
    norms: list[float] = []

    def work(rank: int) -> None:
        for step, scale in enumerate(scales):
            made[rank].clear()
            for index, parameter in enumerate(parameters[rank].values()):
                generator = torch.Generator().manual_seed(100 * step + index)
                gradient = scale * torch.randn(parameter.shape, generator=generator)
                assert parameter.grad is not None
                # The same mean from different shares.
                parameter.grad += gradient * (1 + rank - (processes - 1) / 2)
            norm = made[rank].step(0.1, with_language=with_language)
            if rank == 0:
                norms.append(norm)

    in_threads(processes, work)
    return {name: each.detach().clone() for name, each in parameters[0].items()}, norms


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_together_update_as_one_alone(processes: int) -> None:
    (alone, norms), (together, same_norms) = after_steps(1), after_steps(processes)
    before = small_parameters()

    assert same_norms == pytest.approx(norms)
    assert len(norms) == 3
    for name, expected in alone.items():
        assert torch.allclose(together[name], expected, atol=1e-5), name
        assert not torch.allclose(expected, before[name], atol=1e-3), name


def test_vision_only_steps_leave_the_language_alone() -> None:
    (after, _), before = after_steps(2, with_language=False), small_parameters()

    for name, expected in before.items():
        is_same = torch.equal(after[name], expected)
        assert is_same == name.startswith("model.text_model"), name


def test_a_gradient_above_norm_one_counts_as_one_of_norm_one() -> None:
    """The first step leaves momentum behind: unclipped it would outweigh the second."""
    (_, (norm, _)) = after_steps(1, scales=(1.0, 0.05))
    clipped, norms = after_steps(2, scales=(1000.0, 0.05))
    scaled, unit_norms = after_steps(2, scales=(0.999 / norm, 0.05))

    assert norms[0] == pytest.approx(1000 * norm)
    assert unit_norms[0] == pytest.approx(0.999)
    for name, expected in scaled.items():
        assert torch.allclose(clipped[name], expected, atol=2e-3), name


def test_the_layout_covers_the_memory_once(processor: Processor) -> None:
    model = build_model(processor.tokenizer)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    layout = Layout.divide(shapes, 4)
    places = sorted((layout.offsets[name], shape.numel()) for name, shape in shapes.items())
    ends = [start + size for start, size in places]

    assert [start for start, _ in places] == [0, *ends[:-1]]
    assert layout.spans[-1][1] == ends[-1]
    assert sorted(name for names in layout.owners for name in names) == sorted(shapes)


def test_the_schedule_warms_up_and_cools_down() -> None:
    schedule = Schedule()
    rates = [schedule.at(i / 100, 1000).learning_rate for i in range(101)]

    assert schedule.at(0, 0).learning_rate == pytest.approx(2e-3 / 60)
    assert max(rates) == rates[0] == rates[54] == 2e-3
    assert rates[55:] == sorted(rates[55:], reverse=True)
    assert rates[-1] == pytest.approx(1e-5)
    assert [schedule.at(p, 0).batch_size for p in (0, 0.2, 0.3, 0.6, 0.9)] == [96, 32, 40, 56, 80]
    assert [schedule.at(p, 0).is_vision_only for p in (0, 0.09, 0.1, 1)] == [
        True,
        True,
        False,
        False,
    ]
    assert schedule.at(0.5, 0).auxiliary_weight == 1
    assert schedule.at(1, 0).auxiliary_weight == pytest.approx(0.3)


def test_a_smaller_batch_changes_all_batches_in_proportion() -> None:
    schedule = Schedule().with_batch(8)

    assert [schedule.at(p, 0).batch_size for p in (0, 0.2, 0.3, 0.6, 0.9)] == [24, 8, 10, 14, 20]
    assert Schedule().with_batch(None) == Schedule()


# The watch, and whole runs


def test_the_watch_finds_the_shipped_weights_good_and_fresh_ones_bad(
    data: Path, processor: Processor
) -> None:
    trained = AutoModelForImageTextToText.from_pretrained(WEIGHTS, dtype=torch.float32)
    torch.manual_seed(0)
    fresh = build_model(processor.tokenizer)
    pictures = Pictures(data, "combo")
    encoder = Encoder(processor)
    good, bad = (watch(m, encoder, pictures, range(24), seed=0) for m in (trained, fresh))

    assert share_right(good) > 0.95
    assert share_right(bad) < 0.05
    assert good[:, 1].tolist() == bad[:, 1].tolist()
    assert good[WATCHED.index("caption"), 1] > 10
    assert trained.training


def losses_of(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    return [row["losses"] for row in rows]


@pytest.mark.parametrize(
    "processes", [1, pytest.param(2, marks=pytest.mark.slow, id="two processes")]
)
def test_a_tiny_run_learns_and_saves_a_model_that_loads(
    tmp_path: Path, data: Path, processes: int
) -> None:
    out = tmp_path / "out"
    flags = {
        "--out": str(out),
        "--data": str(tmp_path / "pictures"),
        "--steps": "8",
        "--pictures": str(PICTURES),
        "--batch": "4",
        "--device": "cpu",
        "--dtype": "float32",
        "--processes": str(processes),
        "--watch-seconds": "0.001",
        "--watch-pictures": "4",
    }
    code = train.main([word for flag in flags.items() for word in flag])
    losses = losses_of(out)
    language = [each["language"] for each in losses if "language" in each]

    assert code == 0
    assert len(losses) == 8
    assert language[-1] < language[0]
    assert losses[-1]["patches"] < losses[0]["patches"]
    for path in data.glob("train*"):
        assert path.read_bytes() == (tmp_path / "pictures" / path.name).read_bytes()
    names = {path.name for path in WEIGHTS.iterdir()} | {LOG}
    assert {path.name for path in out.iterdir()} == names
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in out.iterdir())
    saved = AutoModelForImageTextToText.from_pretrained(out)
    assert saved.dtype == torch.bfloat16
    assert saved.num_parameters() == 4_781_376


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "error: `--minutes` must be above 0\n"),
        (["--steps", "0"], "error: `--steps` must be at least 1\n"),
        (["--processes", "0"], "error: `--processes` must be above 0\n"),
        (["--pictures", "3"], "error: 3 pictures are too few to train on\n"),
    ],
)
def test_a_run_that_cannot_work_is_a_usage_error(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    code = train.main(["--out", str(tmp_path / "out"), "--device", "cpu", *arguments])
    out, err = capsys.readouterr()

    assert (code, out) == (EXIT_USAGE, "")
    assert err.startswith(message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("pictures", "data", "message"),
    [
        ("200", "file", "error: cannot write the model or its pictures: "),
        ("900000000000", "folder", "error: 900000000000 pictures take 32689422.4 GiB"),
    ],
)
def test_a_place_that_cannot_hold_the_pictures_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    pictures: str,
    data: str,
    message: str,
) -> None:
    (tmp_path / "file").write_text("x")
    arguments = ["--out", str(tmp_path / "out"), "--data", str(tmp_path / data)]
    code = train.main([*arguments, "--pictures", pictures, "--device", "cpu", "--processes", "1"])

    assert code == EXIT_FAILURE
    assert capsys.readouterr().err.startswith(message)


def test_a_folder_of_something_else_is_not_trained_into(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "thesis.txt").write_text("keep")
    code = train.main(["--out", str(folder), "--steps", "1"])

    assert code == EXIT_USAGE
    assert "was not made by training" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
