"""The memory of training, by part, before it is taken."""

from __future__ import annotations

from dataclasses import dataclass

from idefics_cli.core.types import DtypeName, LoadSpec
from idefics_cli.models.families.spec import Shape
from idefics_cli.models.hub.sizes import NUMBER_BYTES
from idefics_cli.models.planning.memory import (
    CPU_RUNTIME_BYTES,
    GPU_RUNTIME_BYTES,
    ON_CPU,
    ON_CUDA,
    prompt_tokens,
    tile_bytes,
    weight_bytes,
)
from idefics_cli.training.tuning.job import MOST_TOKENS, TuneChoices, is_checkpointed

# A trained weight has a number in float32, its gradient and the two moments of Adam.
_TRAINED_BYTES = 16
# Logits exist in the dtype of the computation and in float32, and so does their gradient.
_LOGIT_BYTES = 10
# Results of one layer that the backward pass needs: of attention, in widths of the hidden state,
# and of the feed-forward layers, in their own width.
_HIDDEN_RESULTS, _WIDE_RESULTS = 8, 3
# A GPU needs many tokens at once. A CPU is as quick with a few hundred, and their logits and
# activations take less memory.
_MICRO_TOKENS = {"cuda": 16384}
_CPU_MICRO_TOKENS = 512
# A GPU encodes this number of patches at once, and at least one tile; see `training/pictures.py`.
_GPU_PATCHES = 20_000
# The usual run without data: the largest vocabulary of the families, and rows with an answer of
# this length.
_VOCABULARY, _ANSWER_TOKENS = 130_000, 64


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """The memory of training in bytes.

    Attributes:
        weights: All weights of the model.
        trained: Trained weights, gradients and moments, as far as they are not in *weights*.
        activations: Results of the text model that the backward pass needs.
        logits: Logits at the labelled places.
        runtime: Memory of the libraries.
        vision: Intermediate results of the vision tower for the tiles of one forward.
    """

    weights: int
    trained: int
    activations: int
    logits: int
    runtime: int
    vision: int

    @property
    def total(self) -> int:
        """All parts; vision and text run one after the other."""
        working = max(self.activations + self.logits, self.vision)
        return self.weights + self.trained + self.runtime + working


@dataclass(frozen=True, slots=True)
class TrainingSize:
    """What the memory of training depends on, besides the model.

    Attributes:
        trained: Number of trained weights.
        vocabulary: Number of rows of the head.
        tokens: Tokens of a micro-batch, padding included.
        longest: Tokens of the longest row.
        labelled: Labelled tokens of a micro-batch.
        checkpointing: Whether activations are computed twice.
        computed: Dtype of the computation.
    """

    trained: int
    vocabulary: int
    tokens: int
    longest: int
    labelled: int
    checkpointing: bool
    computed: DtypeName


def micro_tokens_on(device: str) -> int:
    """Return the largest number of tokens of a micro-batch on *device*, padding included."""
    return _MICRO_TOKENS.get(device.partition(":")[0], _CPU_MICRO_TOKENS)


def estimate_usual(
    spec: LoadSpec, shape: Shape, parameters: int, *, splitting: bool, computed: DtypeName
) -> TrainingMemory:
    """Return an estimate of the memory for an adapter with all defaults, without its data.

    Each row has one picture.

    Args:
        spec: How the model is loaded for training.
        shape: Its architecture.
        parameters: Number of its weights.
        splitting: Whether the picture is split.
        computed: Dtype of the computation.
    """
    usual = TuneChoices()
    row = prompt_tokens(shape, splitting=splitting, context=MOST_TOKENS)
    rows = max(1, micro_tokens_on(spec.device) // row)
    size = TrainingSize(
        trained=_lora_weights(shape, usual.rank),
        vocabulary=_VOCABULARY,
        tokens=rows * row,
        longest=row,
        labelled=rows * _ANSWER_TOKENS,
        checkpointing=is_checkpointed(parameters),
        computed=computed,
    )
    return estimate_training(spec, shape, parameters, size)


def _lora_weights(shape: Shape, rank: int) -> int:
    """Return the number of weights of LoRA matrices beside all layers of the text model."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = 4 * shape.hidden + 2 * queries + 2 * keys
    forward = 3 * (shape.hidden + shape.intermediate)
    return rank * (shape.layers + shape.cross_layers) * (attention + forward)


def estimate_training(
    spec: LoadSpec, shape: Shape, parameters: int, size: TrainingSize
) -> TrainingMemory:
    """Return an estimate of the memory.

    Args:
        spec: How the model is loaded.
        shape: Its architecture.
        parameters: Number of its weights.
        size: What is trained, in which portions.
    """
    computed, tokens = size.computed, size.tokens
    number = NUMBER_BYTES[computed]
    wide = _HIDDEN_RESULTS * shape.hidden + _WIDE_RESULTS * shape.intermediate
    layer = tokens * wide * number
    if spec.attention == "eager":
        layer += 2 * shape.heads * tokens * size.longest * NUMBER_BYTES["float32"]
    between = tokens * shape.hidden * number
    activations = shape.layers * between + layer if size.checkpointing else shape.layers * layer
    is_cuda = spec.device.startswith("cuda")
    forward = ON_CUDA if is_cuda else ON_CPU
    tiles = max(1, min(shape.tiles, _GPU_PATCHES // shape.patches)) if is_cuda else 1
    return TrainingMemory(
        weights=weight_bytes(
            parameters,
            shape,
            dtype=spec.dtype,
            quantization=spec.quantization,
            format_4bit="nf4",
        ),
        trained=size.trained * _TRAINED_BYTES,
        activations=activations,
        logits=size.labelled * size.vocabulary * _LOGIT_BYTES,
        runtime=GPU_RUNTIME_BYTES if is_cuda else CPU_RUNTIME_BYTES,
        vision=tiles * tile_bytes(shape, dtype=computed, attention="sdpa", forward=forward),
    )
