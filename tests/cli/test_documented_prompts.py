"""Prompts of the model documentation, as commands: ids, pixels and tokens are the library's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from idefics_cli.cli.services import Services
from idefics_cli.core.types import GenerationRequest, LoadSpec
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.protocol import EngineFactory, OpenImage, Prepared
from tests.support import tiny
from tests.support.commands import MACHINE, run
from tests.support.encoded import assert_same_inputs, encode
from tests.support.prompts import NEW_TOKENS, open_engine, picture
from tests.support.reference import Content, Reference, load_reference


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

    def ask(self, *arguments: str) -> tuple[Prepared, list[int]]:
        """Run `idefics ask`, and return what the engine gets and the tokens of the answer."""
        out, (prepared,) = self.run("ask", *arguments, "--json")
        return prepared, json.loads(out)["token_ids"]

    def run(self, *arguments: str) -> tuple[str, list[Prepared]]:
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
            environ={}, stdin=None, make_factory=make_factory, probe=lambda: MACHINE
        )
        options = ("-m", str(self.folder), "--dtype", "float32")
        limit = ("--max-new-tokens", str(NEW_TOKENS))
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
    assert tokens == model.reference.generate(theirs, max_new_tokens=NEW_TOKENS)


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
    assert tokens == model.reference.generate(theirs, max_new_tokens=NEW_TOKENS)


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
    assert tokens == model.reference.generate(theirs, max_new_tokens=NEW_TOKENS)


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
    prepared, tokens = model.ask("--raw", prompt, "-i", photos[0], *flags)
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
