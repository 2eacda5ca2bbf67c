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

    requests: list[GenerationRequest]

    def prepare(
        self, request: GenerationRequest, *, open_image: OpenImage | None = None
    ) -> Prepared:
        self.requests.append(request)
        return super().prepare(request, open_image=open_image)


@dataclass(frozen=True)
class _Model:
    """One tiny checkpoint, loaded by this tool and by the library."""

    folder: Path
    engine: LocalEngine
    reference: Reference

    def ask(self, *arguments: str) -> tuple[GenerationRequest, list[int]]:
        """Run `idefics ask`, and return the request to the engine and the tokens of the answer."""
        requests: list[GenerationRequest] = []

        def make_factory(spec: LoadSpec) -> EngineFactory:
            def make(**options: object) -> LocalEngine:
                loaded = self.engine.loaded
                engine = _Watched(spec, load=lambda spec, *, report: loaded)
                engine.requests = requests
                return engine

            return make

        services = Services(
            environ={}, stdin=None, make_factory=make_factory, probe=lambda: MACHINE
        )
        options = ("-m", str(self.folder), "--dtype", "float32", "--json")
        limit = ("--max-new-tokens", str(NEW_TOKENS))
        ran = run("ask", *arguments, *options, *limit, services=services)
        assert ran.code == 0, ran.err
        (request,) = requests
        return request, json.loads(ran.out)["token_ids"]


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
    request, tokens = model.ask(*arguments)
    theirs = model.reference.content_inputs(turns)
    assert_same_inputs(encode(model.engine, model.engine.prepare(request)), theirs)
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
    request, tokens = model.ask("--raw", text, *flags)
    theirs = model.reference.raw_inputs(library, [picture(number) for number in order])
    assert_same_inputs(encode(model.engine, model.engine.prepare(request)), theirs)
    assert tokens == model.reference.generate(theirs, max_new_tokens=NEW_TOKENS)
