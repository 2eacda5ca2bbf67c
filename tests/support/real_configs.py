"""The architecture in the config.json of each real checkpoint."""

from __future__ import annotations

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
_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
}
_SIGLIP_BASE = {
    "hidden_size": 768,
    "image_size": 512,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "patch_size": 16,
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


def _idefics2(vocabulary: int) -> Config:
    # As on the Hub, without the values that equal Mistral's defaults.
    return {
        "model_type": "idefics2",
        "image_token_id": 32_001,
        "text_config": {"model_type": "mistral", "vocab_size": vocabulary},
        "vision_config": {**_SO400M, "image_size": 980},
        "perceiver_config": {"model_type": "idefics2"},
    }


def _idefics3(
    kind: str, text: dict[str, int], vision: dict[str, int], image_token: int, *, scale: int
) -> Config:
    return {
        "model_type": kind,
        "scale_factor": scale,
        "image_token_id": image_token,
        "text_config": {"model_type": "llama", "pad_token_id": 2, **text},
        "vision_config": vision,
    }


def _text(
    hidden: int, layers: int, heads: int, kv: int, intermediate: int, vocabulary: int
) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": intermediate,
        "vocab_size": vocabulary,
    }


_256M = _text(576, 30, 9, 3, 1536, 49_280)
_500M = _text(960, 32, 15, 5, 2560, 49_280)
_2B = {**_text(2048, 24, 32, 32, 8192, 49_280)}

CONFIGS: dict[str, Config] = {
    "idefics-9b": _idefics1(4096, 32, 32, 11_008, 2),
    "idefics-9b-instruct": _idefics1(4096, 32, 32, 11_008, 3),
    "idefics-80b": _idefics1(8192, 80, 64, 22_016, 2),
    "idefics-80b-instruct": _idefics1(8192, 80, 64, 22_016, 3),
    "idefics2-8b": _idefics2(32_003),
    "idefics2-8b-chatty": _idefics2(32_003),
    "idefics2-8b-base": _idefics2(32_002),
    "idefics3-8b": _idefics3(
        "idefics3",
        _text(4096, 32, 32, 8, 14_336, 128_259),
        {**_SO400M, "image_size": 364},
        128_257,
        scale=2,
    ),
    "smolvlm-256m": _idefics3("idefics3", _256M, _SIGLIP_BASE, 49_190, scale=4),
    "smolvlm-500m": _idefics3("idefics3", _500M, _SIGLIP_BASE, 49_190, scale=4),
    "smolvlm-2.2b": _idefics3(
        "idefics3",
        {**_2B, "vocab_size": 49_155},
        {**_SO400M, "image_size": 384},
        49_153,
        scale=3,
    ),
    "smolvlm2-256m": _idefics3("smolvlm", _256M, _SIGLIP_BASE, 49_190, scale=4),
    "smolvlm2-500m": _idefics3("smolvlm", _500M, _SIGLIP_BASE, 49_190, scale=4),
    "smolvlm2-2.2b": _idefics3("smolvlm", _2B, {**_SO400M, "image_size": 384}, 49_190, scale=3),
}
# Sizes and tiles in the settings of their image processors.
IMAGES: dict[str, Config] = {
    "idefics2": {"do_image_splitting": True, "size": {"longest_edge": 980, "shortest_edge": 378}},
    "idefics3-8b": {"size": {"longest_edge": 4 * 364}},
    "256m": {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}},
    "500m": {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}},
    "2.2b": {"size": {"longest_edge": 1536}, "max_image_size": {"longest_edge": 384}},
}


def image_settings(name: str) -> Config:
    """Return the settings of the image processor of the model *name*."""
    return next((value for part, value in IMAGES.items() if part in name), {})
