"""The base class of all model families, which turn prompts and pictures into tensors.

Shape letters, here and in `engine/`: B batch, N images or tiles per row, T tokens, H W pixels,
V vocabulary, L features per image or tile, D width of a hidden state.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain, repeat
from typing import TYPE_CHECKING, Self, TypeAlias, cast

import torch
from torch import Tensor

from idefics_cli.core.errors import PromptError
from idefics_cli.core.types import GenerationRequest, Message, PictureDetail
from idefics_cli.models.families.classes import import_class
from idefics_cli.models.families.detail import find_edges, with_detail, without_own
from idefics_cli.models.families.geometry import find_detail_fault
from idefics_cli.models.families.internals import cache_name
from idefics_cli.models.families.picture import PictureTensors, PreparedPicture, digest_of
from idefics_cli.models.families.protocols import Config, Model, Processor, StepOutput
from idefics_cli.models.families.raw_prompt import is_answered, raw_text
from idefics_cli.models.families.resize import levels_of
from idefics_cli.models.families.spec import FAKE_TOKEN, IMAGE_TOKEN, find_family
from idefics_cli.models.families.special_tokens import control_pattern, find_hidden_ids
from idefics_cli.models.families.vision_work import VisionWork

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import Cache

Inputs: TypeAlias = dict[str, Tensor]
"""Named tensors of B prompts; `input_ids` and `attention_mask` (B, T) among them."""

# This draft edge is longer than a side of any JPEG, so that the decoder never shrinks a picture.
_NO_DRAFT_EDGE = 2**16

PrefixKey: TypeAlias = int | bytes
"""The identity of one token of a prompt: its id, or the digest of its picture."""


class Family:
    """The prompts and tensors of one family; subclasses fill in what differs.

    Args:
        processor: Processor of the checkpoint; its tokenizer is set to pad on the left.
        config: Config of the checkpoint.
        chats: Whether the model was trained for chats; False for base models.
        stop_ids: Ids of further tokens that end a reply, from the checkpoint's generation config.

    Attributes:
        spec: The row of the family in `FAMILIES`.
        stop_ids: Ids of all tokens that end a reply.
        banned_ids: Ids of the tokens that no reply may contain.
        hidden_ids: Ids of special tokens that the text of a reply leaves out; None for all of them.
        pad_id: Id of the token that pads prompts.
        image_id: Id of the image token; -1 if the tokenizer has none.
        vision_work: The arithmetic of the vision encoder, if one forward can take tiles of several
            sizes; None if it cannot.
        template_fault: Why the chat template cannot be used, as the end of a sentence; None if
            the template works, or if the family has no template.
    """

    vision_work: VisionWork | None = None
    template_fault: str | None = None

    def __init__(
        self, processor: Processor, config: Config, *, chats: bool, stop_ids: Iterable[int] = ()
    ) -> None:
        self.spec = find_family(config.model_type)
        self.processor = processor
        self.tokenizer = processor.tokenizer
        # With right padding, there would be pad tokens between prompt and reply. The model would
        # then reply with wrong tokens, without an error.
        self.tokenizer.padding_side = "left"
        self.chats = chats
        self.stop_ids = self._known_ids(self.stop_tokens()) | set(stop_ids)
        if self.tokenizer.eos_token_id is not None:
            self.stop_ids.add(self.tokenizer.eos_token_id)
        # A reply must not contain image tokens: decoding would embed such a token as text, but a
        # later prefill of the conversation would take it for a picture.
        self.banned_ids = self._known_ids(self.image_tokens()) - self.stop_ids
        pad = self.tokenizer.pad_token_id
        self.pad_id = pad if pad is not None else min(self.stop_ids)
        control = self.stop_ids | self.banned_ids | {self.pad_id}
        self.hidden_ids = find_hidden_ids(processor, control)
        image_id = self.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self.image_id = -1 if image_id is None else image_id
        self._control = control_pattern(self.tokenizer, self.hidden_ids)
        images, geometry = processor.image_processor, self.spec.geometry
        self._edges = find_edges(images, config.vision_config, geometry)
        self._in_detail: dict[PictureDetail, Self] = {}
        self._digest_prefix = b""

    @classmethod
    def complete_config(cls, config: Config, stated: Mapping[str, object]) -> None:
        """Correct the defaults of transformers that differ from those of the model's authors.

        Args:
            config: Config with the defaults of transformers; changed in place.
            stated: The object in config.json, without any default.
        """

    def in_detail(self, detail: PictureDetail) -> Self:
        """Return the family that preprocesses pictures in *detail*; safe in any thread.

        Raises:
            PromptError: If the model cannot see pictures like this.
        """
        images = self.processor.image_processor
        chosen = without_own(detail, images)
        if chosen == PictureDetail():
            return self
        if fault := find_detail_fault(chosen, self._edges, self.spec.title):
            raise PromptError(fault[0], hint=fault[1])
        if (made := self._in_detail.get(chosen)) is None:
            made = copy.copy(self)
            made.processor = copy.copy(self.processor)
            made.processor.image_processor = with_detail(images, chosen)
            # The digest of a picture is the key of its image features. It is computed from the
            # pixels before they are cut into tiles, so it does not depend on the detail. The prefix
            # adds the detail to the key.
            made._digest_prefix = repr(chosen).encode()
            self._in_detail[chosen] = made
        return made

    @property
    def draft_edge(self) -> int:
        """The draft edge in pixels: the decoder of a JPEG may shrink each side down to this length.

        It is twice the longest side that the model gets. The factor leaves enough pixels for tiles,
        which are cut before they are scaled down. It also leaves most of the scaling to the image
        processor, whose filter is finer than the box filter of a decoder.
        """
        processor = self.processor.image_processor
        edges = [edge for edge in dict(processor.size).values() if edge]
        # Without scaling, the model sees every pixel, so the decoder must not shrink the picture.
        return 2 * max(edges) if edges and processor.do_resize else _NO_DRAFT_EDGE

    def find_tile_fault(self, height: int, width: int) -> str | None:
        """Return why the model does not take tiles of this size in pixels, or None if it does.

        The text is the end of a sentence that begins "the tiles of a picture are".
        """
        return None

    def image_tokens(self) -> tuple[str, ...]:
        """Return the tokens that stand for pictures; no reply may contain them."""
        return (IMAGE_TOKEN, FAKE_TOKEN)

    def stop_tokens(self) -> tuple[str, ...]:
        """Return the tokens that end a reply."""
        turn_end = (self.spec.turn_end,) if self.chats else ()
        return (*self.spec.stop_tokens, *turn_end)

    def preprocess(
        self, image: Image, recall: Callable[[bytes], PictureTensors | None] = lambda digest: None
    ) -> PictureTensors:
        """Cut and scale a picture; safe in any thread.

        Args:
            image: RGB and upright; `info["original_size"]` is its size before any scaling.
            recall: Takes the digest of a picture; returns the picture if it is known, or None.
        """
        size = image.info.get("original_size", image.size)
        pieces = self._pieces(image)
        digest = digest_of(pieces)
        if self._digest_prefix:
            digest = hashlib.sha256(self._digest_prefix + digest).digest()
        if (known := recall(digest)) is not None:
            if known.picture.size == size:
                return known
            return replace(known, picture=replace(known.picture, size=size))
        tiles, grid = self._make_tiles(pieces)
        picture = PreparedPicture(
            digest=digest,
            size=size,
            tile_sizes=tuple((tile.shape[1], tile.shape[2]) for tile in tiles),
            grid=grid,
        )
        are_bytes = tiles[0].dtype == torch.uint8
        return PictureTensors(picture, tuple(tiles), levels=self._levels if are_bytes else None)

    def encode(
        self, requests: Sequence[GenerationRequest], pictures: Sequence[Sequence[PreparedPicture]]
    ) -> Inputs:
        """Tokenize B requests as one left-padded batch.

        Args:
            requests: B requests. One that ends with an answer is a whole conversation to train on;
                a raw one then ends with the end token.
            pictures: The pictures of each request, in the order of its parts.

        Returns:
            `input_ids` and `attention_mask` (B, T) int64, and further tensors that
            `text_inputs` of the family needs. All are on the CPU.

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
            tiles: On the device of the model.
            sizes: (height, width) of each tile in pixels, without the padding at its right and
                bottom; None if no tile is padded. Only families with `vision_work` take padding.
        """
        raise NotImplementedError

    def place_features(self, model: Model, features: Sequence[Sequence[Tensor]]) -> Tensor | None:
        """Return image features in the form that `text_inputs` takes, on the model's device.

        Args:
            model: The model that will take the features.
            features: Features (tokens, D) of each picture of each row.

        Returns:
            One tensor. None if no row has a picture, unless the family needs a tensor even then.
        """
        raise NotImplementedError

    def text_inputs(
        self, model: Model, inputs: Inputs, image_features: Tensor | None, start: int, end: int
    ) -> Inputs:
        """Return the inputs of the model's forward for tokens *start* to *end* of the prompts.

        Args:
            model: Model whose embeddings are used.
            inputs: Result of `encode`, on the model's device.
            image_features: Result of `place_features`.
            start: First position (of T) to run.
            end: Position after the last one to run.

        Returns:
            All inputs except the mask, the positions and the cache.
        """
        raise NotImplementedError

    def embed(self, model: Model, ids: Tensor) -> Tensor:
        """Return the embeddings (B, T, D) of *ids* (B, T), without a wait for the device."""
        embeds: Tensor = model.get_input_embeddings()(ids)
        return embeds

    def next_inputs(self, inputs: Inputs, image_features: Tensor | None) -> Inputs:
        """Return the inputs that every decode step needs besides ids, mask, positions and cache.

        The first dimension of each tensor is the batch.
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
        """Run *inputs* as the tokens that follow those in *cache*.

        Args:
            model: In eval mode.
            inputs: Result of `text_inputs`; or the result of `next_inputs`, and the ids of one
                new token for each row.
            cache: KV cache; the states of *inputs* are appended.
            mask: (B, T), 1 where a token is real, for the tokens in *cache* and *inputs*; or
                (B, 1, 1, T) in the form that the attention takes. None masks nothing.
            positions: Position ids (B, T) of the tokens in *inputs*.

        Returns:
            Logits (B, 1, V) of the last token of each row.
        """
        return model(
            **self.library_inputs(inputs),
            **{cache_name(model.config.model_type): cache},
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            return_dict=True,
        )

    def row_inputs(self, input_ids: Tensor, pictures: int) -> Inputs:
        """Return what `text_inputs` needs for the tokens *input_ids* (B, T), padded on any side.

        *pictures* is the largest number of pictures of a row.
        """
        return {"input_ids": input_ids}

    def prefix_keys(
        self, ids: Sequence[int], pictures: Sequence[PreparedPicture]
    ) -> list[PrefixKey]:
        """Return the key of each token of a prompt; see `PrefixKey`.

        The KV states of a token depend only on its key and the keys before it. So two prompts share
        the states of the equal keys with which both begin.

        Raises:
            ValueError: If *ids* have more or fewer image tokens than *pictures* need.
        """
        shown = chain.from_iterable(repeat(p.digest, self._count_tokens(p)) for p in pictures)
        keys: list[PrefixKey] = [next(shown, b"") if i == self.image_id else i for i in ids]
        if b"" in keys or next(shown, None) is not None:
            raise ValueError("the prompt's image tokens do not match its pictures")
        return keys

    def check(self, request: GenerationRequest) -> None:
        """Check *request* as far as this is possible without opening an image.

        Raises:
            PromptError: If the model cannot take this kind of request.
        """
        if request.mode == "chat":
            is_empty = not request.messages or not request.messages[-1].text.strip()
        else:
            is_empty = not raw_text(request)
        if is_empty:
            raise PromptError(
                "the prompt is empty", hint="ask something, such as `idefics ask 'What is this?'`"
            )

    def break_control_tokens(self, text: str) -> str:
        """Return *text* with a space in every control token, so that the model reads it as text.

        For example, `<image>` becomes `< image>`.
        """
        # One pass may leave a new control token, as in `<im<image>age>`, so it is repeated.
        while self._control.search(text):
            text = self._control.sub(lambda m: m.group()[0] + " " + m.group()[1:], text)
        return text

    @cached_property
    def _levels(self) -> Tensor:
        return levels_of(self.processor.image_processor)

    def _parts(self, message: Message) -> list[str | None]:
        """Return the texts of *message*, without control tokens, and None for each picture.

        Texts that follow each other are joined first, because a token may be divided between them.
        """
        parts: list[str | None] = []
        for part in message.parts:
            if not isinstance(part, str):
                parts.append(None)
            elif parts and parts[-1] is not None:
                parts[-1] += part
            else:
                parts.append(part)
        return [None if part is None else self.break_control_tokens(part) for part in parts]

    def library_inputs(self, inputs: Inputs) -> Inputs:
        """Return *inputs* of `forward` in the form that the installed transformers takes."""
        return inputs

    def _pieces(self, image: Image) -> Sequence[Image]:
        """Return the images from which `_make_tiles` makes the tiles.

        The digest of a picture is made from these images, so the tiles must depend on nothing else.
        """
        return [image]

    def _make_tiles(self, pieces: Sequence[Image]) -> tuple[Sequence[Tensor], tuple[int, int]]:
        """Return the tiles of a picture (3, H, W) without padding, and its grid.

        The tiles are uint8 before rescaling and normalizing, or float32 after both.
        """
        raise NotImplementedError

    def _count_tokens(self, picture: PreparedPicture) -> int:
        """Return the number of image tokens that stand for *picture* in a prompt."""
        raise NotImplementedError

    def _raw_end(self, request: GenerationRequest) -> list[int]:
        """Return the end token of a raw prompt with its answer; nothing for other requests."""
        end = self.tokenizer.eos_token_id
        is_whole = request.mode == "complete" and is_answered(request)
        return [end] if is_whole and end is not None else []

    def _known_ids(self, tokens: Iterable[str]) -> set[int]:
        # If the tokenizer lacks a token, it returns None or the id of <unk>.
        ids = {self.tokenizer.convert_tokens_to_ids(token) for token in tokens}
        return {i for i in ids if i is not None and i != self.tokenizer.unk_token_id}


def family_class(model_type: str) -> type[Family]:
    """Return the subclass of `Family` for *model_type*."""
    return cast("type[Family]", import_class(find_family(model_type).runner))
