"""Shapes of real models, for checkpoints with random weights.

The values come from the configuration files of these models on the Hub.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Config = dict[str, object]

_SO400M: Config = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
}
_SIGLIP_BASE: Config = {
    "hidden_size": 768,
    "image_size": 512,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "patch_size": 16,
}
_HALVES = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Size and control tokens of a vocabulary.

    Attributes:
        kind: "llama" (word marks and byte tokens) or "bytes" (byte level, as in GPT-2).
        size: Number of rows of the embedding.
        begin: Text of the begin token.
        end: Text of the end token.
        pad: Text of the padding token.
        special: The id of every control token, by the text of the token.
    """

    kind: Literal["llama", "bytes"]
    size: int
    begin: str
    end: str
    pad: str
    special: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class RealShape:
    """What is needed of a real model to make a checkpoint of the same shape with random weights.

    Attributes:
        name: Name of the real model.
        config: The `config.json` of the model, without values that are defaults of its class.
        images: The `preprocessor_config.json` of the model.
        image_tokens: Number of prompt tokens that one picture or tile takes.
        vocabulary: The vocabulary of the model.
        template_start: The text that the chat template of the model writes first.
    """

    name: str
    config: Config
    images: Config
    image_tokens: int
    vocabulary: Vocabulary
    template_start: str = ""

    @property
    def family(self) -> str:
        """The `model_type` of the model."""
        return str(self.config["model_type"])

    def cut(self, layers: int | None, vision_layers: int | None) -> Config:
        """Return the config with fewer layers in the text model and in the vision model.

        Args:
            layers: Layers of the text model; None keeps all.
            vision_layers: Layers of the vision model; None keeps as many as *layers*, or all.
        """
        config = copy.deepcopy(self.config)
        text, vision = config["text_config"], config["vision_config"]
        assert isinstance(text, dict)
        assert isinstance(vision, dict)
        text["num_hidden_layers"] = min(layers or 1000, text["num_hidden_layers"])
        kept = vision_layers or layers or 1000
        vision["num_hidden_layers"] = min(kept, vision["num_hidden_layers"])
        return config


def _tile_tokens() -> list[str]:
    """Return the tokens that say at which place of the picture a tile was."""
    rows = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    return ["<global-img>", *rows]


def _idefics2() -> RealShape:
    special = {
        "<fake_token_around_image>": 32_000,
        "<image>": 32_001,
        "<end_of_utterance>": 32_002,
    }
    text: Config = {
        "model_type": "mistral",
        "vocab_size": 32_003,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-5,
        "sliding_window": 4096,
        "pad_token_id": 0,
    }
    return RealShape(
        name="idefics2-8b",
        config={
            "model_type": "idefics2",
            "image_token_id": 32_001,
            "text_config": text,
            "vision_config": {**_SO400M, "image_size": 980},
            "perceiver_config": {"model_type": "idefics2", "rms_norm_eps": 1e-5},
        },
        images={
            "image_processor_type": "Idefics2ImageProcessor",
            "do_image_splitting": True,
            "size": {"longest_edge": 980, "shortest_edge": 378},
            **_HALVES,
        },
        image_tokens=64,
        vocabulary=Vocabulary("llama", 32_003, "<s>", "</s>", "<unk>", special),
    )


def _idefics3() -> RealShape:
    special = {
        "<|begin_of_text|>": 128_000,
        "<|end_of_text|>": 128_001,
        "<|finetune_right_pad_id|>": 128_002,
        "<|eom_id|>": 128_008,
        "<|eot_id|>": 128_009,
        "<fake_token_around_image>": 128_256,
        "<image>": 128_257,
        "<end_of_utterance>": 128_258,
    }
    text: Config = {
        "model_type": "llama",
        "vocab_size": 128_259,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "pad_token_id": 128_002,
        "bos_token_id": 128_000,
        "eos_token_id": 128_001,
    }
    return _tiled(
        "idefics3-8b",
        text,
        {**_SO400M, "image_size": 364},
        scale=2,
        edge=4 * 364,
        vocabulary=Vocabulary(
            "bytes",
            128_259,
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|finetune_right_pad_id|>",
            special,
        ),
    )


def _smolvlm(name: str, text: Config, vision: Config, *, scale: int, edge: int) -> RealShape:
    special = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    if name == "smolvlm-2.2b":
        size = 49_155
        images = ("<fake_token_around_image>", "<image>", "<end_of_utterance>")
        special |= {token: 49_152 + i for i, token in enumerate(images)}
    else:
        size = 49_280
        special |= {token: 49_152 + i for i, token in enumerate(_tile_tokens())}
        special |= {"<fake_token_around_image>": 49_189, "<image>": 49_190}
        special |= {"<end_of_utterance>": 49_279}
    text = {
        **text,
        "model_type": "llama",
        "vocab_size": size,
        "max_position_embeddings": 16_384 if name == "smolvlm-2.2b" else 8192,
        "rms_norm_eps": 1e-5,
        "pad_token_id": 2,
        "bos_token_id": 1,
        "eos_token_id": special["<end_of_utterance>"],
    }
    vocabulary = Vocabulary(
        "bytes", size, "<|im_start|>", "<end_of_utterance>", "<|im_end|>", special
    )
    return _tiled(name, text, vision, scale=scale, edge=edge, vocabulary=vocabulary)


def _tiled(
    name: str, text: Config, vision: Config, *, scale: int, edge: int, vocabulary: Vocabulary
) -> RealShape:
    tile, patch = vision["image_size"], vision["patch_size"]
    assert isinstance(tile, int)
    assert isinstance(patch, int)
    return RealShape(
        name=name,
        config={
            "model_type": "idefics3",
            "image_token_id": vocabulary.special["<image>"],
            "scale_factor": scale,
            "pad_token_id": vocabulary.special[vocabulary.pad],
            "text_config": text,
            "vision_config": vision,
        },
        images={
            "image_processor_type": "Idefics3ImageProcessor",
            "do_image_splitting": True,
            "size": {"longest_edge": edge},
            "max_image_size": {"longest_edge": tile},
            **_HALVES,
        },
        image_tokens=(tile // patch) ** 2 // scale**2,
        vocabulary=vocabulary,
        template_start=vocabulary.begin,
    )


def _text(hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int) -> Config:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
    }


SHAPES: Mapping[str, RealShape] = MappingProxyType(
    {
        shape.name: shape
        for shape in (
            _smolvlm(
                "smolvlm-256m", _text(576, 30, 9, 3, 1536), _SIGLIP_BASE, scale=4, edge=4 * 512
            ),
            _smolvlm(
                "smolvlm-500m", _text(960, 32, 15, 5, 2560), _SIGLIP_BASE, scale=4, edge=4 * 512
            ),
            _smolvlm(
                "smolvlm-2.2b",
                _text(2048, 24, 32, 32, 8192),
                {**_SO400M, "image_size": 384},
                scale=3,
                edge=4 * 384,
            ),
            _idefics2(),
            _idefics3(),
        )
    }
)
"""Shapes by the name of the model."""
