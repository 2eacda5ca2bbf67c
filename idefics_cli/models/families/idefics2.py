"""The family Idefics2 (arXiv:2405.02246), and the base class of families with a chat template."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from idefics_cli.core.errors import PromptError
from idefics_cli.core.types import GenerationRequest
from idefics_cli.models.families.base import Family, Inputs
from idefics_cli.models.families.bounded_template import BoundedTemplate
from idefics_cli.models.families.geometry import section
from idefics_cli.models.families.picture import PreparedPicture
from idefics_cli.models.families.prompt_template import PromptTemplate
from idefics_cli.models.families.protocols import Config, Model, Processor
from idefics_cli.models.families.raw_prompt import raw_text
from idefics_cli.models.families.resize import cut_tiles, pixels_of, shrink
from idefics_cli.models.families.spec import FAKE_TOKEN, IMAGE_TOKEN
from idefics_cli.models.families.token_rows import pad_left
from idefics_cli.models.families.vision_work import VisionWork

if TYPE_CHECKING:
    from PIL.Image import Image


# `_WORD_AT_IMAGE` finds a picture with a word right after it, because transformers puts a space
# between the two.
_WORD_AT_IMAGE = re.compile(rf"{re.escape(FAKE_TOKEN)}(?=[^\s<])")


class TemplateFamily(Family):
    """A family whose processor has a chat template, and takes text and pictures separately."""

    def __init__(
        self, processor: Processor, config: Config, *, chats: bool, stop_ids: Iterable[int] = ()
    ) -> None:
        super().__init__(processor, config, chats=chats, stop_ids=stop_ids)
        self._template = None
        if processor.chat_template is not None:
            self._template = PromptTemplate(BoundedTemplate(processor))
        if chats and self._template is not None:
            self.template_fault = self._template.fault

    def render(self, request: GenerationRequest, pictures: Sequence[PreparedPicture] = ()) -> str:
        """Return the prompt as text, with one `<image>` for each picture.

        Args:
            request: The request.
            pictures: Its pictures, if any of them is a video.

        Raises:
            PromptError: If a raw prompt has more or fewer `<image>` than pictures, or if the
                template refuses the conversation.
            ModelError: If the template fails.
        """
        if request.mode == "complete":
            return raw_text(request)
        turns = [(message.role, self._parts(message)) for message in request.messages]
        if self._template is None:
            raise PromptError("the model has no chat template", hint="use `--raw`")
        return self._template.render(turns)

    def encode(
        self, requests: Sequence[GenerationRequest], pictures: Sequence[Sequence[PreparedPicture]]
    ) -> Inputs:
        """See `Family.encode`. The result has no further tensors."""
        # The prompts of a captioning run differ only in their pictures, and most pictures have the
        # same image tokens. So equal prompts are rendered once: rendering a template takes a tenth
        # of the time of a small model's decode step.
        made: dict[Hashable, list[int]] = {}
        rows = []
        for request, row in zip(requests, pictures, strict=True):
            key = _prompt_key(request, row)
            if key not in made:
                text = self._drop_second_begin(self.render(request, row))
                made[key] = self._tokenize(text, row) + self._raw_end(request)
            rows.append(made[key])
        return pad_left(rows, self.pad_id)

    def encode_tiles(
        self, model: Model, tiles: Tensor, sizes: Sequence[tuple[int, int]] | None = None
    ) -> Tensor:
        """See `Family.encode_tiles`. The tiles have no padding."""
        # transformers expects a batch of rows of images. Here the batch is one row, which holds all
        # B tiles. No mask is given, so no pixel counts as padding.
        features = model.model.get_image_features(tiles[None]).pooler_output
        if not isinstance(features, Tensor):
            # transformers 5.21 and later return one tensor for each row.
            features = torch.cat(list(features))
        return features.reshape(len(tiles), -1, features.shape[-1])

    def place_features(self, model: Model, features: Sequence[Sequence[Tensor]]) -> Tensor | None:
        """See `Family.place_features`. The result is (tokens, D), all rows after each other."""
        every = [each for row in features for each in row]
        return torch.cat(every).to(model.device) if every else None

    def text_inputs(
        self, model: Model, inputs: Inputs, image_features: Tensor | None, start: int, end: int
    ) -> Inputs:
        """See `Family.text_inputs`.

        The result has the embeddings (B, T, D), with image features at the image tokens.
        """
        ids = inputs["input_ids"]
        embeds = model.get_input_embeddings()(ids[:, start:end])
        if image_features is not None:
            is_image = ids == self.image_id
            numbers = (is_image.flatten().cumsum(0) - 1).view_as(ids)[:, start:end]
            here = is_image[:, start:end]
            # Text tokens look up a feature, too, and do not use it: a GPU would make the host wait
            # for the number of image tokens.
            found = image_features[numbers.clamp_(min=0)].to(embeds)
            # This makes a new tensor, because the embeddings may share memory with the weights.
            embeds = torch.where(here.to(embeds.device)[..., None], found, embeds)
        return {"inputs_embeds": embeds}

    def _drop_second_begin(self, text: str) -> str:
        """Return *text* without its begin token, if the tokenizer adds a begin token itself."""
        bos = self.tokenizer.bos_token
        if not bos or not text.startswith(bos):
            return text
        written = self.tokenizer("", add_special_tokens=True)["input_ids"]
        return text.removeprefix(bos) if written else text

    def _tokenize(self, text: str, pictures: Sequence[PreparedPicture]) -> list[int]:
        """Return the ids of *text*, with each `<image>` replaced by the tokens of its picture."""
        raise NotImplementedError

    def _count_tokens(self, picture: PreparedPicture) -> int:
        return len(picture.tile_sizes) * self.processor.image_seq_len

    def check(self, request: GenerationRequest) -> None:
        """See `Family.check`."""
        super().check(request)
        if request.mode == "chat":
            for message in request.messages:
                if not message.parts:
                    raise PromptError(f"a {message.role} turn is empty")


class Idefics2(TemplateFamily):
    """The family Idefics2: SigLIP, a perceiver with 64 latents per tile, and Mistral."""

    def __init__(
        self, processor: Processor, config: Config, *, chats: bool, stop_ids: Iterable[int] = ()
    ) -> None:
        super().__init__(processor, config, chats=chats, stop_ids=stop_ids)
        self.vision_work = count_vision_work(config)
        self._patch = config.vision_config.patch_size

    @classmethod
    def complete_config(cls, config: Config, stated: Mapping[str, object]) -> None:
        """See `Family.complete_config`.

        The configs on the Hub leave out the epsilon of the perceiver. The original code used the
        epsilon of the text model, 1e-5. transformers 5 uses the default of its config class, 1e-6.
        """
        if "rms_norm_eps" not in section(stated, "perceiver_config"):
            config.perceiver_config.rms_norm_eps = config.get_text_config().rms_norm_eps

    def encode_tiles(
        self, model: Model, tiles: Tensor, sizes: Sequence[tuple[int, int]] | None = None
    ) -> Tensor:
        """See `Family.encode_tiles`.

        This does the same as `get_image_features` of transformers 5.23, modeling_idefics2.py, which
        finds the patches without padding in a mask of pixels. Here *sizes* give these patches.
        """
        count, _, height, width = tiles.shape
        rows, columns = height // self._patch, width // self._patch
        real = torch.ones(count, rows, columns, dtype=torch.bool)
        for mask, (tile_height, tile_width) in zip(real, sizes or (), strict=False):
            mask[tile_height // self._patch :] = False
            mask[:, tile_width // self._patch :] = False
        real = real.to(tiles.device)
        core = model.model
        states = core.vision_model(pixel_values=tiles.to(core.dtype), patch_attention_mask=real)
        features: Tensor = core.connector(states.last_hidden_state, attention_mask=real.flatten(1))
        return features

    def find_tile_fault(self, height: int, width: int) -> str | None:
        """See `Family.find_tile_fault`."""
        if min(height, width) < self._patch:
            return f"of {width} x {height} pixels, less than a patch of {self._patch} pixels"
        return None

    def _pieces(self, image: Image) -> Sequence[Image]:
        processor = self.processor.image_processor
        pieces = [*_quarters(image), image] if processor.do_image_splitting else [image]
        return [shrink(piece, processor, self._scaled) for piece in pieces]

    def _make_tiles(self, pieces: Sequence[Image]) -> tuple[Sequence[Tensor], tuple[int, int]]:
        processor = self.processor.image_processor
        sizes = [(piece.height, piece.width) for piece in pieces]
        if processor.do_resize and all(self._scaled(*size) == size for size in sizes):
            return [pixels_of(piece) for piece in pieces], (0, 0)
        encoded = cut_tiles([list(pieces)], processor, do_image_splitting=False)
        if isinstance(encoded, Tensor):
            raise TypeError("the image processor returned no named tensors")
        return strip_padding(encoded), (0, 0)

    def _scaled(self, height: int, width: int) -> tuple[int, int]:
        from transformers.models.idefics2.image_processing_pil_idefics2 import (
            get_resize_output_image_size,
        )

        size = self.processor.image_processor.size
        edges = dict(size)
        if not edges.get("shortest_edge") or not edges.get("longest_edge"):
            return height, width
        scaled: tuple[int, int] = get_resize_output_image_size(
            SimpleNamespace(shape=(3, height, width)), size
        )
        return scaled

    def _tokenize(self, text: str, pictures: Sequence[PreparedPicture]) -> list[int]:
        first, *rest = text.split(IMAGE_TOKEN)
        for picture, part in zip(pictures, rest, strict=True):
            first += self._spell_picture(picture) + part
        # transformers applies the same rules (5.23, processing_idefics2.py).
        text = _WORD_AT_IMAGE.sub(f"{FAKE_TOKEN} ", first.replace(FAKE_TOKEN * 2, FAKE_TOKEN))
        return self.tokenizer(text)["input_ids"]

    def _spell_picture(self, picture: PreparedPicture) -> str:
        """Return the tokens of one picture as text: first for its quarters, then for the whole."""
        images = IMAGE_TOKEN * self.processor.image_seq_len
        return f"{FAKE_TOKEN}{images}{FAKE_TOKEN}" * len(picture.tile_sizes)


def _prompt_key(request: GenerationRequest, pictures: Sequence[PreparedPicture]) -> Hashable:
    """Return a key of the prompt: prompts with equal keys have equal tokens.

    The pixels of the pictures are not in the key, because the tokens do not depend on them.
    """
    messages = tuple(
        (message.role, tuple(part if isinstance(part, str) else None for part in message.parts))
        for message in request.messages
    )
    shapes = tuple((picture.grid, len(picture.tile_sizes), picture.moments) for picture in pictures)
    return request.mode, messages, shapes


def _quarters(image: Image) -> Iterator[Image]:
    """Yield the four quarters of *image* row by row, in the order of transformers."""
    width, height = image.size
    for top, bottom in ((0, height // 2), (height // 2, height)):
        for left, right in ((0, width // 2), (width // 2, width)):
            yield image.crop((left, top, right, bottom))


def count_vision_work(config: Config) -> VisionWork:
    """Return the arithmetic of Idefics2's encoder, projection and perceiver."""
    vision, text = config.vision_config, config.get_text_config()
    layer = 4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size
    projection = (2 * vision.hidden_size + text.hidden_size) * text.intermediate_size
    # Each weight costs 2 operations, a multiplication and an addition. For a pair of patches,
    # attention has two products of this kind, which makes 4.
    return VisionWork(
        patch=vision.patch_size,
        layers=vision.num_hidden_layers + config.perceiver_config.resampler_depth,
        patch_operations=2 * (vision.num_hidden_layers * layer + projection),
        pair_operations=4 * vision.num_hidden_layers * vision.hidden_size,
    )


def strip_padding(encoded: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the tiles (3, H, W) of one picture, each in its own size.

    Args:
        encoded: Result of the image processor of transformers for one picture.
    """
    tiles = encoded["pixel_values"][0]
    if "pixel_attention_mask" not in encoded:
        return list(tiles)
    cut = []
    for tile, mask in zip(tiles, encoded["pixel_attention_mask"][0], strict=True):
        height, width = int(mask.any(1).sum()), int(mask.any(0).sum())
        # The tile is copied, because a view would keep the padding in memory.
        cut.append(tile[:, :height, :width].contiguous())
    return cut
