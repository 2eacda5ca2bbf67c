"""The parts of transformers that this package uses, as protocols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class AddedToken(Protocol):
    """The part of an added token of a tokenizer that families use."""

    content: str
    special: bool


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that families use."""

    padding_side: str
    bos_token: str | None
    eos_token_id: int | None
    pad_token_id: int | None
    unk_token_id: int | None
    chat_template: str | None
    special_tokens_map: Mapping[str, object]
    added_tokens_decoder: Mapping[int, AddedToken]

    def __call__(
        self, text: str, *, add_special_tokens: bool = True
    ) -> Mapping[str, list[int]]: ...

    def __len__(self) -> int: ...

    def decode(
        self,
        token_ids: Sequence[int],
        *,
        skip_special_tokens: bool,
        clean_up_tokenization_spaces: bool,
    ) -> str: ...

    def convert_tokens_to_ids(self, tokens: str) -> int | None: ...

    def convert_ids_to_tokens(self, ids: int) -> str: ...

    def get_added_vocab(self) -> dict[str, int]: ...


Pixels: TypeAlias = NDArray[np.uint8] | NDArray[np.float32]
"""A picture (3, H, W), from 0 to 255 or normalized."""


class ImageProcessor(Protocol):
    """The part of a transformers image processor that families use."""

    size: Mapping[str, int | None]
    resample: int | None
    do_resize: bool
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    image_mean: Sequence[float]
    image_std: Sequence[float]
    do_image_splitting: bool

    def __call__(self, images: object, **options: object) -> Mapping[str, Tensor] | Tensor: ...

    def rescale(self, image: Pixels, scale: float) -> Pixels: ...

    def normalize(self, image: Pixels, mean: Sequence[float], std: Sequence[float]) -> Pixels: ...


class Processor(Protocol):
    """The part of a transformers processor that families use."""

    tokenizer: Tokenizer
    image_processor: ImageProcessor
    image_seq_len: int
    chat_template: str | None

    def __call__(self, *, text: list[str]) -> Mapping[str, list[list[int]]]: ...

    def apply_chat_template(
        self, conversation: list[dict[str, object]], *, add_generation_prompt: bool
    ) -> str: ...


class TextConfig(Protocol):
    """The part of a text model's config that the engine and families use."""

    max_position_embeddings: int
    rms_norm_eps: float
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int


class VisionConfig(Protocol):
    """The part of a vision model's config that the loader and families use."""

    image_size: int
    patch_size: int
    embed_dim: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int


class PerceiverConfig(Protocol):
    """The part of a perceiver's config that the loader uses."""

    resampler_depth: int
    rms_norm_eps: float


class Config(Protocol):
    """The part of a model's config that the loader uses."""

    model_type: str
    vision_config: VisionConfig
    perceiver_config: PerceiverConfig
    use_resampler: bool
    scale_factor: int
    tie_word_embeddings: bool

    def get_text_config(self) -> TextConfig: ...


class VisionOutput(Protocol):
    """The part of a vision model's output that families use."""

    last_hidden_state: Tensor
    pooler_output: Tensor | Sequence[Tensor]


class CoreOutput(Protocol):
    """The part of the output of a model below its head that training uses."""

    last_hidden_state: Tensor


class Core(Protocol):
    """The part of a model below its head that families use."""

    dtype: torch.dtype

    def get_image_features(self, pixel_values: Tensor) -> VisionOutput: ...

    def vision_model(
        self, *, pixel_values: Tensor, patch_attention_mask: Tensor = ...
    ) -> VisionOutput: ...

    def connector(self, image_hidden_states: Tensor, *, attention_mask: Tensor) -> Tensor: ...

    def perceiver_resampler(self, context: Tensor) -> Tensor: ...

    def __call__(self, **inputs: object) -> CoreOutput: ...


class Model(Protocol):
    """The part of a model that the engine uses."""

    config: Config
    device: torch.device
    model: Core

    def __call__(self, **inputs: object) -> StepOutput: ...

    def get_input_embeddings(self) -> nn.Module: ...

    def get_output_embeddings(self) -> nn.Module: ...

    def eval(self) -> Self: ...


class DecoupledEmbedding(Protocol):
    """The part of IDEFICS-1's embedding that its family uses; it consists of two tables."""

    num_embeddings: int
    num_additional_embeddings: int
    weight: Tensor
    additional_embedding: nn.Embedding


class StepOutput(Protocol):
    """The part of a model's output that decoding uses."""

    logits: Tensor
