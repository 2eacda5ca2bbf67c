"""IDEFICS (arXiv:2306.16527): Llama with gated cross attention to CLIP, as Flamingo."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urlparse

from PIL.Image import Image as PILImage

from idefics_cli.core.types import GenerationRequest
from idefics_cli.models.families.base import (
    END_OF_UTTERANCE,
    Family,
    Inputs,
    as_tensors,
    raw_text,
)
from idefics_cli.models.library import Config, Processor, StepOutput

if TYPE_CHECKING:
    from PIL.Image import Image

Item: TypeAlias = "str | PILImage"


class Idefics1(Family):
    """Prompts are lists that mix texts and images; there is no chat template.

    Each token sees only the last image before it, so a question belongs right after its image.
    """

    def __init__(
        self, processor: Processor, config: Config, *, chats: bool, stop_ids: Iterable[int] = ()
    ) -> None:
        super().__init__(processor, config, chats=chats, stop_ids=stop_ids)
        self._step_key = (
            "perceiver_embeddings" if config.use_resampler else "image_encoder_embeddings"
        )

    def items(self, request: GenerationRequest, images: Sequence[Image]) -> list[Item]:
        """Return the prompt as the interleaved list that the processor takes."""
        queue = list(images)
        items: list[Item] = []
        if request.mode == "complete":
            raw_text(request)
            for message in request.messages:
                for part in message.parts:
                    _append(items, part if isinstance(part, str) else queue.pop(0))
            if items and isinstance(items[0], str):
                # The processor writes the begin token, and must not be given a second one.
                items[0] = items[0].removeprefix(str(self.tokenizer.bos_token))
            return _without_urls(items)
        for message in request.messages:
            name = message.role.capitalize()
            for index, text in enumerate(self._parts(message)):
                if index == 0:
                    _append(items, f"{name}:" if text is None else f"{name}: ")
                _append(items, queue.pop(0) if text is None else text)
            # The processor no longer writes this token (it looks for it where transformers 5
            # never puts it), and an instruct model rambles without it.
            _append(items, f"{END_OF_UTTERANCE}\n")
        _append(items, "Assistant:")
        return _without_urls(items)

    def encode(
        self, requests: Sequence[GenerationRequest], images: Sequence[Sequence[Image]]
    ) -> Inputs:
        """See `Family.encode`.

        `pixel_values` is always there (zeros without images); adds `image_attention_mask`
        (B, T, N) bool, true where a token sees an image.
        """
        prompts = [self.items(r, row) for r, row in zip(requests, images, strict=True)]
        encoded = self.processor(
            text=prompts,
            padding="longest",
            return_tensors="pt",
            add_end_of_utterance_token=False,
        )
        return as_tensors(encoded)

    def next_inputs(self, inputs: Inputs, output: StepOutput) -> Inputs:
        """See `Family.next_inputs`: the encoded images (B, N, L, D), and who sees them."""
        if output.image_hidden_states is None:
            raise ValueError("the model returned no image states")
        return {
            self._step_key: output.image_hidden_states,
            "image_attention_mask": inputs["image_attention_mask"][:, -1:],
        }


def _append(items: list[Item], item: Item) -> None:
    # The processor strips the spaces around every text item, so neighbours become one item.
    if isinstance(item, str) and items and isinstance(items[-1], str):
        items[-1] += item
    else:
        items.append(item)


def _without_urls(items: Sequence[Item]) -> list[Item]:
    """Cut every text that the processor would take for a URL, and download, into harmless parts."""
    safe: list[Item] = []
    for item in items:
        while isinstance(item, str) and _is_url(item):
            # A URL needs two slashes in a row. The processor joins the halves again without
            # anything between them.
            head, _, tail = item.partition("/")
            safe.append(f"{head}/")
            item = tail
        safe.append(item)
    return safe


def _is_url(text: str) -> bool:
    # The rule of transformers 5.23, processing_idefics.py, `is_url`, after its strip. That one
    # raises for a malformed host, so such a text must be cut as well.
    text = text.strip(" ")
    if " " in text:
        return False
    try:
        parsed = urlparse(text)
    except ValueError:
        return True
    return bool(parsed.scheme and parsed.netloc)
