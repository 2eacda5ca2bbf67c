"""The family IDEFICS-1 (arXiv:2306.16527): Llama with gated cross attention to CLIP."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn import functional

from idefics_cli.core.types import GenerationRequest
from idefics_cli.models.families.base import Family, Inputs
from idefics_cli.models.families.internals import takes_flat_states
from idefics_cli.models.families.picture import PreparedPicture
from idefics_cli.models.families.protocols import Config, DecoupledEmbedding, Model, Processor
from idefics_cli.models.families.raw_prompt import is_answered, raw_text
from idefics_cli.models.families.resize import cut_tiles, shrink
from idefics_cli.models.families.spec import END_OF_UTTERANCE, FAKE_TOKEN, IMAGE_TOKEN
from idefics_cli.models.families.token_rows import pad_left

if TYPE_CHECKING:
    from PIL.Image import Image


class Idefics1(Family):
    """The family IDEFICS-1. It has no chat template, and one image token for each picture.

    Each token attends only to the last picture before it. So a question must follow its picture.
    """

    def __init__(
        self, processor: Processor, config: Config, *, chats: bool, stop_ids: Iterable[int] = ()
    ) -> None:
        super().__init__(processor, config, chats=chats, stop_ids=stop_ids)
        self._resamples = config.use_resampler
        self._states_name = (
            "perceiver_embeddings" if config.use_resampler else "image_encoder_embeddings"
        )
        self._width = config.vision_config.embed_dim
        self._edge = config.vision_config.image_size

    def render(self, request: GenerationRequest) -> str:
        """Return the prompt as text, with the tokens for its pictures written as in training.

        The processor of transformers is not used, because it downloads text that looks like a URL,
        and no longer writes the end of an utterance (transformers 5.23, processing_idefics.py).
        """
        parts: list[str | None] = []
        if request.mode == "complete":
            raw_text(request)
            for message in request.messages:
                _join(parts, [p if isinstance(p, str) else None for p in message.parts])
        else:
            for message in request.messages:
                content = self._parts(message)
                name = message.role.capitalize()
                if content:
                    _join(parts, [f"{name}:" if content[0] is None else f"{name}: "])
                # Each turn has the end token. Without it, an instruct model does not stop where it
                # should.
                _join(parts, [*content, f"{END_OF_UTTERANCE}\n"])
            if not is_answered(request):
                _join(parts, ["Assistant:"])
        return self._with_images(parts)

    def encode(
        self, requests: Sequence[GenerationRequest], pictures: Sequence[Sequence[PreparedPicture]]
    ) -> Inputs:
        """See `Family.encode`.

        The result also has `image_attention_mask` (B, T, N) int64: 1 where a token attends to a
        picture. N is at least 1.
        """
        texts = [self.render(request) for request in requests]
        rows = [
            self.tokenizer(text, add_special_tokens=False)["input_ids"] + self._raw_end(request)
            for text, request in zip(texts, requests, strict=True)
        ]
        inputs = pad_left(rows, self.pad_id)
        most = max(len(row) for row in pictures)
        return {**inputs, **self.row_inputs(inputs["input_ids"], most)}

    def row_inputs(self, input_ids: Tensor, pictures: int) -> Inputs:
        """See `Family.row_inputs`. The result also has `image_attention_mask`."""
        visible = torch.tensor([self._visible_pictures(row) for row in input_ids.tolist()])
        # In *visible*, -1 stands for no picture. -1 matches no picture index, so its row of the
        # mask is 0.
        mask = visible[..., None] == torch.arange(max(1, pictures))
        return {"input_ids": input_ids, "image_attention_mask": mask.long()}

    def encode_tiles(
        self, model: Model, tiles: Tensor, sizes: Sequence[tuple[int, int]] | None = None
    ) -> Tensor:
        """See `Family.encode_tiles`.

        This is the first part of `IdeficsModel.forward` (transformers 5.23).
        """
        core = model.model
        states = core.vision_model(pixel_values=tiles.to(core.dtype)).last_hidden_state
        return core.perceiver_resampler(states) if self._resamples else states

    def place_features(self, model: Model, features: Sequence[Sequence[Tensor]]) -> Tensor:
        """See `Family.place_features`.

        The result is (B, N, L, D). A row with fewer pictures than N has zeros in their place.
        """
        shapes = [each.shape for row in features for each in row]
        most = max(1, *(len(row) for row in features))
        # The model needs at least one picture. If there is none, it gets zeros, which are masked.
        shape = shapes[0] if shapes else (1, self._width)
        image_features = torch.zeros(len(features), most, *shape, device=model.device)
        image_features = image_features.to(model.model.dtype)
        for index, row in enumerate(features):
            for number, each in enumerate(row):
                image_features[index, number] = each
        return image_features

    def text_inputs(
        self, model: Model, inputs: Inputs, image_features: Tensor | None, start: int, end: int
    ) -> Inputs:
        """See `Family.text_inputs`."""
        return {
            "input_ids": inputs["input_ids"][:, start:end],
            "image_attention_mask": inputs["image_attention_mask"][:, start:end],
            **self._states(image_features),
        }

    def embed(self, model: Model, ids: Tensor) -> Tensor:
        """See `Family.embed`.

        The embedding of transformers has two tables. To choose between them, it waits for the
        device, so this method does not call it.
        """
        table = cast("DecoupledEmbedding", model.get_input_embeddings())
        count = table.num_embeddings
        embeds = functional.embedding(ids.clamp(max=count - 1), table.weight)
        if not table.num_additional_embeddings:
            return embeds
        added = functional.embedding((ids - count).clamp(min=0), table.additional_embedding.weight)
        return torch.where((ids < count)[..., None], embeds, added)

    def next_inputs(self, inputs: Inputs, image_features: Tensor | None) -> Inputs:
        """See `Family.next_inputs`. A reply attends to the picture of the end of its prompt."""
        return {
            "image_attention_mask": inputs["image_attention_mask"][:, -1:],
            **self._states(image_features),
        }

    def library_inputs(self, inputs: Inputs) -> Inputs:
        """See `Family.library_inputs`."""
        if not takes_flat_states():
            return inputs
        return {**inputs, self._states_name: inputs[self._states_name].flatten(0, 1)}

    def _states(self, image_features: Tensor | None) -> Inputs:
        if image_features is None:
            raise ValueError("this family needs image features even for prompts without a picture")
        return {self._states_name: image_features}

    def find_tile_fault(self, height: int, width: int) -> str | None:
        """See `Family.find_tile_fault`. The position embeddings fit only one size."""
        if height == width == self._edge:
            return None
        edge = self._edge
        return f"of {width} x {height} pixels, and the model takes {edge} x {edge}"

    def _pieces(self, image: Image) -> Sequence[Image]:
        size = dict(self.processor.image_processor.size)
        height, width = size.get("height"), size.get("width")
        if not height or not width:
            return [image]
        return [shrink(image, self.processor.image_processor, lambda *_: (height, width))]

    def _make_tiles(self, pieces: Sequence[Image]) -> tuple[Sequence[Tensor], tuple[int, int]]:
        pixels = cut_tiles(list(pieces), self.processor.image_processor)
        if not isinstance(pixels, Tensor):
            raise TypeError("the image processor returned no tensor")
        return list(pixels), (0, 0)

    def _count_tokens(self, picture: PreparedPicture) -> int:
        return 1

    def _with_images(self, parts: Sequence[str | None]) -> str:
        """Return *parts* as one text, without the spaces around each part, as in training."""
        text = str(self.tokenizer.bos_token)
        for index, part in enumerate(parts):
            if part is not None:
                # The text already begins with the begin token, so a begin token that the user wrote
                # is removed.
                own = part.removeprefix(text) if index == 0 else part
                text += own.strip(" ")
            elif index and parts[index - 1] is None:
                text += IMAGE_TOKEN + FAKE_TOKEN
            else:
                text += FAKE_TOKEN + IMAGE_TOKEN + FAKE_TOKEN
        return text

    def _visible_pictures(self, ids: Sequence[int]) -> list[int]:
        """Return for each token the number of the picture that it attends to, or -1."""
        picture, has_ended = -1, False
        visible = []
        for token in ids:
            if token == self.image_id:
                picture, has_ended = picture + 1, False
            visible.append(-1 if has_ended else picture)
            has_ended = has_ended or token == self.tokenizer.eos_token_id
        return visible


def _join(parts: list[str | None], more: Sequence[str | None]) -> None:
    """Append *more* to *parts*, and join texts that follow each other."""
    for part in more:
        if part is not None and parts and (last := parts[-1]) is not None:
            parts[-1] = last + part
        else:
            parts.append(part)
