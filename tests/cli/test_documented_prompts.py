"""Prompts of the model documentation, as commands: ids, pixels and tokens are the library's."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import BitsAndBytesConfig

from idefics_cli.cli.services import Services
from idefics_cli.core.errors import ModelError
from idefics_cli.core.types import GenerationRequest, LoadSpec
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.protocol import EngineFactory, OpenImage, Prepared
from idefics_cli.hardware.machine import Machine
from idefics_cli.models.loading.bitsandbytes import bitsandbytes_config
from tests.support import machines, tiny
from tests.support.commands import TWO_CORES, run
from tests.support.encoded import assert_same_inputs, encode
from tests.support.prompts import open_engine, picture
from tests.support.readme import ROOT
from tests.support.reference import Content, Reference, load_reference

# Where words are banned, a reply must be long enough to meet them. Elsewhere, equal inputs say the
# most; `tests/engine` compares longer replies.
NEW_TOKENS, FEW_TOKENS = 12, 4


class _Watched(LocalEngine):
    """An engine that remembers what it is asked."""

    prepared: list[Prepared]

    def prepare(
        self, request: GenerationRequest, *, open_image: OpenImage | None = None
    ) -> Prepared:
        self.prepared.append(super().prepare(request, open_image=open_image))
        return self.prepared[-1]


@dataclass(frozen=True)
class _Model:
    """One tiny checkpoint, loaded by this tool and by the library."""

    folder: Path
    engine: LocalEngine
    reference: Reference

    def plan(self, *arguments: str, machine: Machine) -> LoadSpec:
        """Return how a command would load the model on *machine*."""
        specs: list[LoadSpec] = []

        def make_factory(spec: LoadSpec) -> EngineFactory:
            specs.append(spec)
            raise ModelError("planned")

        services = Services({}, None, make_factory, lambda: machine)
        ran = run(*arguments, "-m", str(self.folder), services=services)
        assert specs, ran.err
        return specs[0]

    def ask(self, *arguments: str, new_tokens: int = FEW_TOKENS) -> tuple[Prepared, list[int]]:
        """Run `idefics ask`, and return what the engine gets and the tokens of the answer."""
        out, (prepared,) = self.run("ask", *arguments, "--json", new_tokens=new_tokens)
        return prepared, json.loads(out)["token_ids"]

    def run(self, *arguments: str, new_tokens: int = FEW_TOKENS) -> tuple[str, list[Prepared]]:
        """Run a command, and return its output and what the engine gets."""
        prepared: list[Prepared] = []

        def make_factory(spec: LoadSpec) -> EngineFactory:
            def make(**options: object) -> LocalEngine:
                loaded = self.engine.loaded
                engine = _Watched(spec, load=lambda spec, *, report: loaded)
                engine.prepared = prepared
                return engine

            return make

        services = Services(
            environ={}, stdin=None, make_factory=make_factory, probe=lambda: TWO_CORES
        )
        options = ("-m", str(self.folder), "--dtype", "float32")
        limit = ("--max-new-tokens", str(new_tokens))
        ran = run(*arguments, *options, *limit, services=services)
        assert ran.code == 0, ran.err
        return ran.out, prepared


@pytest.fixture(scope="module")
def model_of(checkpoint: Callable[[str], Path]) -> Iterator[Callable[[str], _Model]]:
    made: list[_Model] = []

    @cache
    def get(kind: str) -> _Model:
        folder = checkpoint(kind)
        made.append(_Model(folder, open_engine(folder, kind), load_reference(folder, kind)))
        return made[-1]

    yield get
    for model in made:
        model.engine.close()


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        picture(number).save(path)
    return [str(path) for path in paths]


def placed(*items: str | int) -> tuple[str | Image.Image, ...]:
    """Return *items* with the pictures of their numbers."""
    return tuple(picture(item) if isinstance(item, int) else item for item in items)


def compare(model: _Model, arguments: Sequence[str], turns: Sequence[Content]) -> None:
    prepared, tokens = model.ask(*arguments)
    theirs = model.reference.content_inputs(turns)
    assert_same_inputs(encode(model.engine, prepared), theirs)
    assert tokens == model.reference.generate(theirs, max_new_tokens=FEW_TOKENS)


# The text of a question for two pictures, and where they stand then.
PLACED = {
    "first": ("Which is larger?", (0, 1, "Which is larger?")),
    "text first": ("Compare <image> with <image>.", ("Compare ", 0, " with ", 1, ".")),
    "by number": ("Is [2] as [1]?", ("Is ", 1, " as ", 0, "?")),
    "one by number": ("What is in [2]? In [2]!", (0, "What is in ", 1, "? In the second image!")),
    "at the end": ("Compare: [1] [2]", ("Compare: ", 0, " ", 1)),
}


@pytest.mark.parametrize("name", PLACED)
@pytest.mark.parametrize("kind", tiny.CHATTING)
def test_pictures_stand_where_the_question_names_them(
    name: str, kind: str, model_of: Callable[[str], _Model], photos: list[str]
) -> None:
    text, items = PLACED[name]
    compare(model_of(kind), (text, "-i", photos[0], "-i", photos[1]), [("user", placed(*items))])


@pytest.mark.parametrize(
    ("text", "library", "order"),
    [
        ("<image>In this image,", "<image>In this image,", [0]),
        ("[2] is not [1], but", "<image> is not <image>, but", [1, 0]),
    ],
)
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_raw_prompt_has_its_pictures_where_it_names_them(
    text: str,
    library: str,
    order: list[int],
    kind: str,
    model_of: Callable[[str], _Model],
    photos: list[str],
) -> None:
    model = model_of(kind)
    flags = [flag for path in photos[: len(order)] for flag in ("-i", path)]
    prepared, tokens = model.ask("--raw", text, *flags)
    theirs = model.reference.raw_inputs(library, [picture(number) for number in order])
    assert_same_inputs(encode(model.engine, prepared), theirs)
    assert tokens == model.reference.generate(theirs, max_new_tokens=FEW_TOKENS)


@pytest.mark.parametrize("kind", tiny.CHATTING)
def test_examples_are_turns_before_the_question(
    kind: str, model_of: Callable[[str], _Model], photos: list[str], tmp_path: Path
) -> None:
    rows = tmp_path / "examples.jsonl"
    rows.write_text('{"image": "2.png", "text": "Two = 2."}\n', encoding="utf-8")
    flags = ("-i", photos[1], "--example", f"{photos[0]}=A kite.", "--examples", str(rows))
    turns: list[Content] = [
        ("user", placed(0, "What is it?")),
        ("assistant", ("A kite.",)),
        ("user", placed(2, "What is it?")),
        ("assistant", ("Two = 2.",)),
        ("user", placed(1, "What is it?")),
    ]
    compare(model_of(kind), ("What is it?", *flags), turns)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_examples_of_a_raw_prompt_are_lines_before_it(
    kind: str, model_of: Callable[[str], _Model], photos: list[str]
) -> None:
    model = model_of(kind)
    # The documentation of IDEFICS, "Few-shot prompting".
    prompt = "User:<image>Describe this image.\nAssistant:"
    flags = ("-i", photos[1], "--example", f"{photos[0]}=A kite.")
    prepared, tokens = model.ask("--raw", prompt, *flags)
    theirs = model.reference.raw_inputs(f"{prompt} A kite.\n{prompt}", [picture(0), picture(1)])
    assert_same_inputs(encode(model.engine, prepared), theirs)
    assert tokens == model.reference.generate(theirs, max_new_tokens=FEW_TOKENS)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_captions_after_examples_are_those_of_ask(
    kind: str, model_of: Callable[[str], _Model], photos: list[str], tmp_path: Path
) -> None:
    model, output = model_of(kind), tmp_path / "out.jsonl"
    example = ("--example", f"{photos[0]}=A kite.")
    is_base = kind not in tiny.CHATTING
    _, found = model.run(
        *("caption", *photos[1:], "-p", "What is it?", *example, "-o", str(output)),
        *("--batch-size", "2"),
    )
    rows = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert [(row["width"], row["height"]) for row in rows] == [picture(1).size, picture(2).size]
    by_path = {each.request.attachments[-1].source: each for each in found}
    for path in photos[1:]:
        raw = ("--raw", "<image> What is it?") if is_base else ("What is it?",)
        asked, _ = model.ask(*raw, "-i", path, *example)
        ours = by_path[path]
        # The pixels of the example are not those of the captioned picture.
        assert [each.digest for each in ours.pictures] == [each.digest for each in asked.pictures]
        assert_same_inputs(encode(model.engine, ours), encode(model.engine, asked))
    other = (*example, "--example", f"{photos[2]}=A bird.")
    with pytest.raises(AssertionError, match="had other settings: examples"):
        model.run("caption", photos[1], "-p", "What is it?", *other, "-o", str(output))


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_completion_holds_no_banned_words(
    kind: str, model_of: Callable[[str], _Model], photos: list[str]
) -> None:
    model, prompt = model_of(kind), "<image>In this image, we can see"
    tokenizer = model.reference.processor.tokenizer
    # The documentation of IDEFICS bans these tokens. Random weights often reply with bytes, which
    # are no words, so the single letters and digits stand for words.
    words = ["<image>", "<fake_token_around_image>", *"aeiou0123456789.", "th", "in", " s"]
    flags = [flag for word in words for flag in ("--ban", word)]
    prepared, tokens = model.ask("--raw", prompt, "-i", photos[0], *flags, new_tokens=NEW_TOKENS)
    theirs = model.reference.raw_inputs(prompt, [picture(0)])
    assert_same_inputs(encode(model.engine, prepared), theirs)
    bad_words = [
        tokenizer(text, add_special_tokens=False).input_ids
        for word in words
        for text in (word, f" {word}")
    ]
    expected = model.reference.generate(theirs, max_new_tokens=NEW_TOKENS, bad_words=bad_words)
    assert tokens == expected
    assert prepared.request.banned == tuple(words)


# The table of `.github/model-documentation.md`.

TABLE = ROOT / ".github" / "model-documentation.md"


def documented(row: str) -> list[list[str]]:
    """Return the arguments of the commands in a row of the table."""
    text = TABLE.read_text(encoding="utf-8")
    (line,) = re.findall(rf"^\| {re.escape(row)}[^|]* \| (.*) \|$", text, re.MULTILINE)
    return [shlex.split(command)[1:] for command in re.findall("`(idefics [^`]*)`", line)]


def documented_requests() -> list[str]:
    """Return the rows of `turns.jsonl` and `two.jsonl`."""
    text = TABLE.read_text(encoding="utf-8")
    block = text.partition("```json\n")[2].partition("```")[0]
    return block.splitlines()


@pytest.fixture
def here(photos: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the files that the table names."""
    for name, path in zip("abc", photos, strict=True):
        Path(path).rename(tmp_path / f"{name}.png")
    first, *others = documented_requests()
    (tmp_path / "turns.jsonl").write_text(f"{first}\n", encoding="utf-8")
    (tmp_path / "two.jsonl").write_text("".join(f"{row}\n" for row in others), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


CRANE = ("assistant", ("A crane.",))
ASKED: dict[str, list[tuple[str, tuple[str | int, ...]]]] = {
    "few-shot: turns with pictures": [
        ("user", (0, "What is it?")),
        CRANE,
        ("user", (1, "What is it?")),
        ("assistant", ("A truck.",)),
        ("user", (2, "What is it?")),
    ],
    "text first, and two pictures": [
        ("user", ("In this picture ", 0, " it is day. And in this one? ", 1)),
    ],
}
RAW: dict[str, tuple[str, list[int], tuple[str, ...]]] = {
    "the same for a base model": (
        "<image>This is a crane.\n<image>This is a truck.\n<image>This is",
        [0, 1, 2],
        (),
    ),
    "completion of a base model": (
        "<image>In this image, we can see",
        [0],
        ("<image>", " <image>", " two", "  two"),
    ),
}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("row", ASKED)
@pytest.mark.parametrize("kind", tiny.CHATTING)
def test_a_documented_question_is_that_of_the_library(
    row: str, kind: str, model_of: Callable[[str], _Model]
) -> None:
    ((command, *arguments),) = documented(row)
    assert command == "ask"
    turns: list[Content] = [(role, placed(*items)) for role, items in ASKED[row]]
    compare(model_of(kind), arguments, turns)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("row", RAW)
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_documented_completion_is_that_of_the_library(
    row: str, kind: str, model_of: Callable[[str], _Model]
) -> None:
    model, (text, numbers, banned) = model_of(kind), RAW[row]
    ((command, *arguments),) = documented(row)
    assert command == "ask"
    prepared, tokens = model.ask(*arguments, new_tokens=NEW_TOKENS)
    theirs = model.reference.raw_inputs(text, [picture(number) for number in numbers])
    assert_same_inputs(encode(model.engine, prepared), theirs)
    tokenizer = model.reference.processor.tokenizer
    bad_words = [tokenizer(word, add_special_tokens=False).input_ids for word in banned]
    expected = model.reference.generate(theirs, max_new_tokens=NEW_TOKENS, bad_words=bad_words)
    assert tokens == expected


BATCHES: dict[str, list[list[tuple[str, tuple[str | int, ...]]]]] = {
    "a conversation with pictures": [
        [
            ("user", (0, "What is it?")),
            ("assistant", ("A crane.",)),
            ("user", ("And this?", 1)),
        ]
    ],
    "two prompts in one batch": [
        [("user", ("Compare ", 0, " with ", 1, "."))],
        [("user", (2, "What is it?"))],
    ],
}


@pytest.mark.parametrize("row", BATCHES)
@pytest.mark.parametrize("kind", tiny.CHATTING)
def test_a_documented_batch_is_that_of_the_library(
    row: str, kind: str, model_of: Callable[[str], _Model], here: Path
) -> None:
    model = model_of(kind)
    ((command, *arguments),) = documented(row)
    assert command == "batch"
    _, found = model.run(command, *arguments, "-o", "answers.jsonl", "--batch-size", "2")
    replies = [
        json.loads(line)["reply"] for line in (here / "answers.jsonl").read_text().splitlines()
    ]
    for turns, reply in zip(BATCHES[row], replies, strict=True):
        theirs = model.reference.content_inputs([(role, placed(*items)) for role, items in turns])
        ids = theirs["input_ids"].tolist()
        (ours,) = (
            each
            for each in found
            if model.engine.loaded.family.encode([each.request], [each.pictures])[
                "input_ids"
            ].tolist()
            == ids
        )
        assert_same_inputs(encode(model.engine, ours), theirs)
        (answer,) = model.engine.complete([ours])
        expected = model.reference.generate(theirs, max_new_tokens=FEW_TOKENS)
        assert list(answer.token_ids) == expected
        assert reply == answer.text


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("kind", ["idefics2", "idefics2-split", "idefics3", "smolvlm", "smolvlm2"])
def test_documented_splitting_is_that_of_the_library(
    kind: str, model_of: Callable[[str], _Model]
) -> None:
    model = model_of(kind)
    tiles = []
    for splits, (_, *arguments) in zip((True, False), documented("pictures cut"), strict=True):
        spec = replace(model.engine.spec, splitting=splits)
        with LocalEngine(spec) as engine:
            split = replace(model, engine=engine)
            prepared, tokens = split.ask(*arguments)
            processor = split.reference.processor.image_processor
            former, processor.do_image_splitting = processor.do_image_splitting, splits
            theirs = split.reference.content_inputs([("user", placed(0, "What is it?"))])
            processor.do_image_splitting = former
            assert_same_inputs(encode(engine, prepared), theirs)
            assert tokens == split.reference.generate(theirs, max_new_tokens=FEW_TOKENS)
            tiles.append(len(prepared.pictures[0].tile_sizes))
    assert tiles[0] > tiles[1] == 1


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("kind", [kind for kind in tiny.CHATTING if kind != "idefics"])
def test_documented_loading_has_the_arguments_of_the_library(
    kind: str, model_of: Callable[[str], _Model]
) -> None:
    pytest.importorskip("bitsandbytes")
    machine = machines.gpus(
        machines.RTX_4090, versions={**machines.VERSIONS, "flash-attn": "2.8.3"}
    )
    ((_, *flash),) = documented("half precision with FlashAttention")
    spec = model_of(kind).plan("ask", *flash, machine=machine)
    assert (spec.dtype, spec.attention) == ("float16", "flash_attention_2")
    assert (spec.device, spec.quantization) == ("cuda", "none")
    ((_, *bits),) = documented("4 bits with double quantization")
    spec = model_of(kind).plan("ask", *bits, machine=machine)
    settings = bitsandbytes_config(spec)
    # The documentation of Idefics2, "Shrinking down Idefics2 using quantization".
    expected = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float16,
        llm_int8_skip_modules=getattr(settings, "llm_int8_skip_modules", None),
    )
    assert settings is not None
    assert settings.to_dict() == expected.to_dict()
