"""Requests that tests ask of engines of tiny checkpoints: questions, pictures, conversations."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from threading import Event

import pytest
from PIL import Image
from torch import Tensor
from transformers import Cache

from idefics_cli.core.types import (
    Attachment,
    Completion,
    GenerationRequest,
    LoadSpec,
    Message,
    Role,
    Sampling,
)
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.local.inference import Inference
from idefics_cli.engine.protocol import Prepared
from idefics_cli.models.families.base import Inputs
from idefics_cli.models.families.picture import PictureTensors, PreparedPicture
from idefics_cli.models.families.protocols import Model, StepOutput
from idefics_cli.models.kernels.text_step.step import TextStep
from idefics_cli.models.loading.loader import Loaded
from tests.support.kernels import with_kernels

Turns = Sequence[tuple[Role, Sequence[int], str]]
"""The role, the numbers of the pictures, and the text of each message."""

NEW_TOKENS = 12
_PICTURE_SIZES = [(90, 60), (40, 75), (64, 64)]

CONVERSATIONS: dict[str, Turns] = {
    "no image": [("user", [], "What can you do?")],
    "one image": [("user", [0], "What is in this image?")],
    "two images": [("user", [0, 1], "Which one is larger?")],
    "three images": [("user", [2, 0, 1], "Describe them.")],
    "later turns": [
        ("user", [1], "What is in this image?"),
        ("assistant", [], "A red circle."),
        ("user", [], "How large is it?"),
        ("assistant", [], "Small."),
        ("user", [2], "And here?"),
    ],
    "text before image": [
        ("user", [], "Hello."),
        ("assistant", [], "Hello! Show me an image."),
        ("user", [0], "Here."),
    ],
    "system": [("system", [], "You are a helpful assistant."), ("user", [1], "What is it?")],
    "other scripts": [("user", [0], "Zürich, naïve, 漢字 🙂\n  two  spaces\n\nand lines")],
}
REPLY_LIMITS = {
    "no image": 9,
    "three images": 3,
    "one image": 14,
    "two images": 1,
    "later turns": 6,
}
"""The most tokens of each reply to `mixed_requests`, whose prompts have four lengths."""


def open_engine(
    folder: Path,
    kind: str,
    make_inference: Callable[[Loaded], Inference] = Inference,
    *,
    device: str = "cpu",
) -> LocalEngine:
    """Load the tiny checkpoint of *kind* in *folder*."""
    family = json.loads((folder / "config.json").read_text())["model_type"]
    chats = not kind.endswith("base")
    spec = LoadSpec(repo=str(folder), family=family, chats=chats, device=device)
    return LocalEngine(with_kernels(spec), make_inference=make_inference)


def reopen(engine: LocalEngine, make_inference: Callable[[Loaded], Inference]) -> LocalEngine:
    """Return another engine, with an inference of its own, on the model of *engine*."""
    loaded = engine.loaded
    return LocalEngine(
        engine.spec, load=lambda spec, *, report: loaded, make_inference=make_inference
    )


def complete_with(
    inference: Inference, batch: Sequence[Prepared], *, cancel: Event | None = None
) -> list[Completion]:
    """Answer *batch* by an engine around *inference*, which keeps its state for later calls."""
    spec = LoadSpec(repo="", family=inference.loaded.model.config.model_type)
    with LocalEngine(
        spec, load=lambda spec, *, report: inference.loaded, make_inference=lambda loaded: inference
    ) as engine:
        return engine.complete(batch, cancel=cancel)


class AfterForwards(Event):
    """An event that is set when a model has run some forwards.

    Args:
        engine: The engine of the model.
        count: Number of forwards.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, engine: LocalEngine, count: int) -> None:
        super().__init__()
        family, left = engine.loaded.family, [count]
        forward = family.forward

        def counted(
            model: Model, inputs: Inputs, cache: Cache, *, mask: Tensor | None, positions: Tensor
        ) -> StepOutput:
            output = forward(model, inputs, cache, mask=mask, positions=positions)
            left[0] -= 1
            if left[0] == 0:
                self.set()
            return output

        monkeypatch.setattr(family, "forward", counted)
        # Compiled steps do not call the forward of the family.
        monkeypatch.setattr(TextStep, "MOST_ROWS", 0)


endless_inference = partial(Inference, stop_ids=())
"""Makes an inference whose replies end at their limits only: random weights end one by chance."""


def picture(index: int) -> Image.Image:
    """Draw a picture unlike the others: a gradient with a block, of its own shape."""
    width, height = _PICTURE_SIZES[index % len(_PICTURE_SIZES)]
    image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    image.paste((200, 40 * index % 255, 90), (5, 5, width // 2, height // 2 + index))
    return image


@cache
def shown(index: int) -> Attachment:
    """Return `picture(index)` as an attachment that any engine can open."""
    return as_attachment(picture(index))


def as_attachment(image: Image.Image) -> Attachment:
    """Return *image* as a `data:` URI."""
    stream = BytesIO()
    image.save(stream, "PNG")
    return Attachment("data:image/png;base64," + b64encode(stream.getvalue()).decode())


def image_of(attachment: Attachment) -> Image.Image:
    """Return the image of `as_attachment`, or of a file."""
    if not attachment.source.startswith("data:"):
        return Image.open(attachment.source)
    return Image.open(BytesIO(b64decode(attachment.source.partition(",")[2])))


def ask(text: str = "Tell me a story.", sampling: Sampling | None = None) -> Prepared:
    """Return a request with text only."""
    return Prepared(GenerationRequest((Message("user", (text,)),), sampling or Sampling()))


def as_request(
    engine: LocalEngine,
    turns: Turns,
    *,
    sampling: Sampling | None = None,
) -> Prepared:
    """Return the request that *turns* make, with its pictures prepared."""
    messages = tuple(
        Message(role, (*(shown(i) for i in images), text)) for role, images, text in turns
    )
    request = GenerationRequest(messages, sampling or Sampling(max_new_tokens=NEW_TOKENS))
    numbers = [number for _, images, _ in turns for number in images]
    return Prepared(request, prepared_pictures(engine, numbers))


def prepared_pictures(engine: LocalEngine, images: Sequence[int]) -> tuple[PreparedPicture, ...]:
    """Preprocess the pictures of these numbers."""
    return tuple(engine.preprocess(picture(i)) for i in images)


def tensors_of(engine: LocalEngine, images: Sequence[int]) -> list[PictureTensors]:
    """Preprocess the pictures of these numbers, and return their pixels or features."""
    return [engine.inference.make_tensors(picture(i)) for i in images]


def raw_prompt(engine: LocalEngine, text: str, images: Sequence[int]) -> Prepared:
    """Return a prompt without a chat template, with *images* in the places of `<image>`."""
    pieces: list[str | Attachment] = []
    queue = list(images)
    for index, piece in enumerate(text.split("<image>")):
        pieces += [shown(queue.pop(0))] if index else []
        pieces += [piece] if piece else []
    request = GenerationRequest(
        (Message("user", tuple(pieces)),), Sampling(max_new_tokens=NEW_TOKENS), "complete"
    )
    return Prepared(request, prepared_pictures(engine, images))


def mixed_requests(engine: LocalEngine, sampling: Sampling | None = None) -> list[Prepared]:
    """Return requests whose replies end after different numbers of tokens."""
    sampling = sampling or Sampling()
    return [
        as_request(engine, CONVERSATIONS[name], sampling=replace(sampling, max_new_tokens=limit))
        for name, limit in REPLY_LIMITS.items()
    ]
