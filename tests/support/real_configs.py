"""The architecture in the config.json of each real checkpoint.

Those of which `idefics bench` makes random weights are in `bench/shapes.py`.
"""

from __future__ import annotations

import copy

from idefics_cli.bench.shapes import SHAPES

Config = dict[str, object]

_CLIP_H = {
    "embed_dim": 1280,
    "image_size": 224,
    "intermediate_size": 5120,
    "num_attention_heads": 16,
    "num_hidden_layers": 32,
    "patch_size": 14,
}
_RESAMPLER = {
    "use_resampler": True,
    "qk_layer_norms_perceiver": True,
    "resampler_depth": 6,
    "resampler_head_dim": 96,
    "resampler_n_heads": 16,
    "resampler_n_latents": 64,
}


def _idefics1(hidden: int, layers: int, heads: int, intermediate: int, extra: int) -> Config:
    return {
        "model_type": "idefics",
        "vocab_size": 32_000,
        "additional_vocab_size": extra,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
        "cross_layer_interval": 4,
        "qk_layer_norms": True,
        "use_resampler": True,
        "vision_config": _CLIP_H,
        "perceiver_config": _RESAMPLER,
    }


def _changed(name: str, changes: Config, text: Config | None = None) -> Config:
    """Return the config of the model *name* with other values, those of its text model apart."""
    config = copy.deepcopy(SHAPES[name].config)
    text_config = config["text_config"]
    assert isinstance(text_config, dict)
    return {**config, **changes, "text_config": {**text_config, **(text or {})}}


def _sparse(vocabulary: int) -> Config:
    """Return the config of an Idefics2 as it is on the Hub: without Mistral's defaults."""
    text_config = {"model_type": "mistral", "vocab_size": vocabulary}
    return {**SHAPES["idefics2-8b"].config, "text_config": text_config}


# The vocabulary of the larger SmolVLM2 is that of the smaller ones.
_SMOLVLM2: Config = {"model_type": "smolvlm", "image_token_id": 49_190}
CONFIGS: dict[str, Config] = {
    "idefics-9b": _idefics1(4096, 32, 32, 11_008, 2),
    "idefics-9b-instruct": _idefics1(4096, 32, 32, 11_008, 3),
    "idefics-80b": _idefics1(8192, 80, 64, 22_016, 2),
    "idefics-80b-instruct": _idefics1(8192, 80, 64, 22_016, 3),
    "idefics2-8b": _sparse(32_003),
    "idefics2-8b-chatty": _sparse(32_003),
    "idefics2-8b-base": _sparse(32_002),
    **{name: SHAPES[name].config for name in SHAPES if name != "idefics2-8b"},
    "smolvlm2-256m": _changed("smolvlm-256m", _SMOLVLM2),
    "smolvlm2-500m": _changed("smolvlm-500m", _SMOLVLM2),
    "smolvlm2-2.2b": _changed("smolvlm-2.2b", _SMOLVLM2, {"vocab_size": 49_280}),
}


def image_settings(name: str) -> Config:
    """Return the settings of the image processor of the model *name*."""
    for shape in SHAPES.values():
        if name.startswith(shape.name) or name == shape.name.replace("smolvlm", "smolvlm2"):
            return shape.images
    return {}
