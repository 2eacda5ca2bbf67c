"""What a model family is: prompts in, tensors out, and which tokens begin and end things.

Shape letters, here and in `engine/`: B batch, N images or tiles per row, T tokens, H W pixels,
V vocabulary, L features per image or tile, D width of a hidden state.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, repeat
from typing import TYPE_CHECKING, TypeAlias, cast

import torch
from torch import Tensor

from idefics_cli.core.errors import PromptError
from idefics_cli.core.types import GenerationRequest, Message
from idefics_cli.models.families.classes import import_class
from idefics_cli.models.families.internals import cache_name
from idefics_cli.models.families.picture import PreparedPicture
from idefics_cli.models.families.protocols import Config, Model, Processor, StepOutput
from idefics_cli.models.families.raw_prompt import raw_text
from idefics_cli.models.families.spec import (
    END_OF_UTTERANCE,
    FAKE_TOKEN,
    IMAGE_TOKEN,
    find_family,
)
from idefics_cli.models.families.vision_work import VisionWork

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import Cache

Inputs: TypeAlias = dict[str, Tensor]
"""Named tensors of B prompts; `input_ids` and `attention_mask` (B, T) among them."""

PrefixKey: TypeAlias = int | bytes
"""The identity of one token of a prompt: its id, or the digest of its picture."""


class Family:
    """How one family builds prompts and tensors; subclasses differ in `encode` and little else.

    Args:
        processor: Loaded by the subclass's rules; its tokenizer is set to pad on the left.
        config: Of the checkpoint, for what a subclass must know of its model.
        chats: False for base models.
        stop_ids: Extra end tokens, from the checkpoint's generation config.

    Attributes:
        spec: Row of the family.
        vision_work: Of the encoder, if it can be shown tiles of several sizes at once; None if
            not, or if there is one size only.
    """

    vision_work: VisionWork | None = None

    def __init__(
        self, processor: Processor, config: Config, *, chats: bool, stop_ids: Iterable[int] = ()
    ) -> None:
        self.spec = find_family(config.model_type)
        self.processor = processor
        self.tokenizer = processor.tokenizer
        # Right padding puts pad tokens between a prompt and its reply: wrong tokens, no error.
        self.tokenizer.padding_side = "left"
        self.chats = chats
        self.stop_ids = self._known_ids(self.stop_tokens()) | set(stop_ids)
        if self.tokenizer.eos_token_id is not None:
            self.stop_ids.add(self.tokenizer.eos_token_id)
        # A generated image token would be embedded as text now and as a picture when the
        # conversation is prefilled again.
        self.banned_ids = self._known_ids(self.image_tokens()) - self.stop_ids
        pad = self.tokenizer.pad_token_id
        self.pad_id = pad if pad is not None else min(self.stop_ids)
        image_id = self.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self.image_id = -1 if image_id is None else image_id
        self._control = _control_pattern(self.tokenizer.get_added_vocab())

    @classmethod
    def complete_config(cls, config: Config, stated: Mapping[str, object]) -> None:
        """Set what the authors of a checkpoint meant where its config says nothing.

        Args:
            config: As the library fills it in; changed in place.
            stated: The object in config.json.
        """

    @property
    def draft_edge(self) -> int:
        """A JPEG may be decoded smaller while both its sides stay at least this long.

        Twice the longest side that the model sees: tiles are cut from the picture before they
        shrink, and a decoder's box filter is coarser than the processor's.
        """
        return 2 * max(edge for edge in dict(self.processor.image_processor.size).values() if edge)

    def image_tokens(self) -> tuple[str, ...]:
        """Return the texts of the tokens that stand for images, which no reply may hold."""
        return (IMAGE_TOKEN, FAKE_TOKEN)

    def stop_tokens(self) -> tuple[str, ...]:
        """Return the texts of the tokens that end a reply."""
        turn_end = (self.spec.turn_end,) if self.chats else ()
        return (*self.spec.stop_tokens, *turn_end)

    def preprocess(
        self, image: Image, recall: Callable[[bytes], PreparedPicture | None] = lambda digest: None
    ) -> PreparedPicture:
        """Cut, scale and normalise a picture; safe in any thread.

        Args:
            image: RGB and upright; `info["original_size"]` is its size before any scaling.
            recall: Returns an equal picture by its digest, if one is at hand.
        """
        size = image.info.get("original_size", image.size)
        pieces = self._pieces(image)
        digest = digest_of(pieces)
        if (known := recall(digest)) is not None:
            return known if known.size == size else replace(known, size=size)
        tiles, grid = self._tiles(pieces)
        return PreparedPicture(
            digest=digest,
            size=size,
            tile_sizes=tuple((tile.shape[1], tile.shape[2]) for tile in tiles),
            grid=grid,
            tiles=tuple(tiles),
        )

    def encode(
        self, requests: Sequence[GenerationRequest], pictures: Sequence[Sequence[PreparedPicture]]
    ) -> Inputs:
        """Tokenize B requests as one left-padded batch.

        Args:
            requests: B requests.
            pictures: Per request its pictures in the order of its parts.

        Returns:
            `input_ids` and `attention_mask` (B, T) int64, and what else of the prompt the
            family's `text_inputs` needs. On the CPU.

        Raises:
            PromptError: If the model cannot take a request.
        """
        raise NotImplementedError

    def encode_tiles(
        self, model: Model, tiles: Tensor, sizes: Sequence[tuple[int, int]] | None = None
    ) -> Tensor:
        """Return the features (B, L, D) of *tiles* (B, 3, H, W).

        Args:
            model: In eval mode.
            tiles: On its device.
            sizes: (height, width) of each tile in pixels without what fills it up at its right
                and bottom; None if none is filled up. Only for families with `vision_work`.
        """
        raise NotImplementedError

    def place_features(self, model: Model, features: Sequence[Sequence[Tensor]]) -> Tensor | None:
        """Return the features (tokens, D) of each row's pictures as `text_inputs` takes them.

        On the model's device; None when no row has a picture and the family needs nothing then.
        """
        raise NotImplementedError

    def text_inputs(
        self, model: Model, inputs: Inputs, image_features: Tensor | None, start: int, end: int
    ) -> Inputs:
        """Return what the model's forward takes for tokens *start* to *end* of the prompts.

        Args:
            model: For its embeddings.
            inputs: Of whole prompts, on the model's device.
            image_features: Of `place_features`.
            start: First place (of T) to run.
            end: First place not to run.

        Returns:
            All but mask, positions and cache.
        """
        raise NotImplementedError

    def embed(self, model: Model, ids: Tensor) -> Tensor:
        """Return the embeddings (B, T, D) of *ids* (B, T), no host waiting for a device."""
        embeds: Tensor = model.get_input_embeddings()(ids)
        return embeds

    def next_inputs(self, inputs: Inputs, image_features: Tensor | None) -> Inputs:
        """Return what every decode step needs besides ids, mask, positions and cache.

        Each tensor's first dimension is the rows'.
        """
        return {}

    def forward(
        self,
        model: Model,
        inputs: Inputs,
        cache: Cache,
        *,
        mask: Tensor | None,
        positions: Tensor,
    ) -> StepOutput:
        """Run *inputs* behind what *cache* holds, by the names that this transformers has.

        Args:
            model: In eval mode.
            inputs: Of `text_inputs`; or of `next_inputs`, with one more token of each row.
            cache: Grows.
            mask: (B, T of the cache and of *inputs*), 1 where a token is real, or (B, 1, 1, T)
                as the attention takes it; None hides nothing.
            positions: (B, T of *inputs*).

        Returns:
            Logits (B, 1, V) of the last token of each row.
        """
        return model(
            **self._named(inputs),
            **{cache_name(model.config.model_type): cache},
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            return_dict=True,
        )

    def prefix_keys(
        self, ids: Sequence[int], pictures: Sequence[PreparedPicture]
    ) -> list[PrefixKey]:
        """Return the key of each token of a prompt; image tokens are known by their picture.

        The KV states of a token depend on the keys up to it and on nothing else, so two prompts
        share the states of the keys with which both begin.

        Raises:
            ValueError: If *ids* hold more or fewer image tokens than *pictures* take.
        """
        shown = chain.from_iterable(repeat(p.digest, self._tokens_of(p)) for p in pictures)
        keys: list[PrefixKey] = [next(shown, b"") if i == self.image_id else i for i in ids]
        if b"" in keys or next(shown, None) is not None:
            raise ValueError("the prompt's image tokens do not match its pictures")
        return keys

    def check(self, request: GenerationRequest) -> None:
        """Check what can be checked without opening an image.

        Raises:
            PromptError: If the model cannot take this kind of request.
        """
        if request.mode == "chat":
            is_empty = not request.messages or not request.messages[-1].text.strip()
        else:
            is_empty = not raw_text(request)
        if is_empty:
            raise PromptError(
                "the prompt is empty", hint="ask something, as `idefics ask 'What is this?'`"
            )

    def plain(self, text: str) -> str:
        """Return *text* with every control token broken up, so that it is read as text.

        `<image>` becomes `< image>`: still readable for the model, no longer one token.
        """
        # Repeated, because `<im<image>age>` must not become a token once its middle is cut.
        while self._control.search(text):
            text = self._control.sub(lambda m: m.group()[0] + " " + m.group()[1:], text)
        return text

    def _parts(self, message: Message) -> list[str | None]:
        """Return texts, made plain, and None for each image; neighbouring texts are joined."""
        parts: list[str | None] = []
        for part in message.parts:
            if not isinstance(part, str):
                parts.append(None)
            elif parts and parts[-1] is not None:
                parts[-1] += part
            else:
                parts.append(part)
        return [None if part is None else self.plain(part) for part in parts]

    def _named(self, inputs: Inputs) -> Inputs:
        """Return *inputs* of `forward` as this transformers takes them."""
        return inputs

    def _pieces(self, image: Image) -> Sequence[Image]:
        """Return what `_tiles` makes the tiles of a picture from, and nothing else of it."""
        return [image]

    def _tiles(self, pieces: Sequence[Image]) -> tuple[Sequence[Tensor], tuple[int, int]]:
        """Return the tiles of a picture (3, H, W) without padding, and its grid."""
        raise NotImplementedError

    def _tokens_of(self, picture: PreparedPicture) -> int:
        """Return how many image tokens stand for *picture* in a prompt."""
        raise NotImplementedError

    def _known_ids(self, tokens: Iterable[str]) -> set[int]:
        # A missing token comes back as the id of <unk> (or None), which is no end token.
        ids = {self.tokenizer.convert_tokens_to_ids(token) for token in tokens}
        return {i for i in ids if i is not None and i != self.tokenizer.unk_token_id}


def check_ids(input_ids: Tensor, rows: int) -> None:
    """Check that every id (B, T) has a row in the embedding.

    Base checkpoints lack rows for the chat tokens that the processor adds to the tokenizer;
    on a GPU such an id is a device-side assertion, after which the process is unusable.

    Raises:
        PromptError: If one has none.
    """
    highest = int(input_ids.max())
    if highest >= rows:
        raise PromptError(
            f"the prompt holds token {highest}, and this model knows only {rows}",
            hint="chat tokens such as `<end_of_utterance>` mean nothing to a base model",
        )


def family_class(model_type: str) -> type[Family]:
    """Return our class that makes prompts and tensors for *model_type*."""
    return cast("type[Family]", import_class(find_family(model_type).runner))


def left_padded_positions(attention_mask: Tensor) -> Tensor:
    """Return position ids (B, T) that count from 0 at each row's first real token."""
    positions: Tensor = attention_mask.long().cumsum(-1) - 1
    return positions.masked_fill_(attention_mask == 0, 1)


def left_padded(rows: Sequence[Sequence[int]], pad_id: int) -> Inputs:
    """Return `input_ids` and `attention_mask` (B, T) of B prompts."""
    longest = max(map(len, rows))
    ids = [[pad_id] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def digest_of(images: Sequence[Image]) -> bytes:
    """Return what names the content of open images."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image.mode} {image.size}".encode())
        digest.update(image.tobytes())
    return digest.digest()


def _control_pattern(added: Iterable[str]) -> re.Pattern[str]:
    # `<0x0A>` byte tokens are ordinary vocabulary, and one-character tokens cannot be broken up.
    tokens = {token for token in added if len(token) > 1 and not token.isspace()}
    tokens |= {IMAGE_TOKEN, FAKE_TOKEN, END_OF_UTTERANCE, "<s>", "</s>"}
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)))
