"""Tiny random checkpoints of every family, saved in folders like those of the Hub."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from tokenizers import processors as post
from transformers import (
    AutoModelForImageTextToText,
    Idefics2Config,
    Idefics3Config,
    IdeficsConfig,
    PreTrainedConfig,
    SmolVLMConfig,
)

from idefics_cli.models.families.chat_template import CHAT_TEMPLATE

KINDS = (
    "idefics",
    "idefics-base",
    "idefics2",
    "idefics2-split",
    "idefics2-base",
    "idefics3",
    "smolvlm",
    "smolvlm2",
)
CHATTING = tuple(kind for kind in KINDS if not kind.endswith("base"))
LAYERED = ("idefics", "idefics2", "idefics3", "smolvlm2")
"""Kinds with the layers of each class of models; the others differ in pictures and tokens only."""
_CORPUS = [
    "User: What is in this image?",
    "Assistant: A red circle above a blue square on a white background.",
    "System: You are a helpful assistant.",
    "Describe the image. How many shapes are there? Zürich, naïve, 漢字.",
    "\nUser: And the second one?\nAssistant: Two cats, one dog.",
] * 20


def make(folder: Path, kind: str, *, seed: int = 0) -> Path:
    """Save a random checkpoint of *kind* in *folder* and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    build = {
        "idefics": _idefics1,
        "idefics2": _idefics2,
        "idefics3": _idefics3,
        "smolvlm": _idefics3,
        "smolvlm2": _idefics3,
    }[kind.partition("-")[0]]
    config = build(folder, kind)
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Gates and latents start at constants, with which a picture does not change a reply.
            if "alpha" in name or "latents" in name:
                parameter.normal_()
            # Larger weights make attention so sharp that a picture changes a reply, and the
            # logits of greedy choices differ by far more than rounding errors.
            elif parameter.dim() > 1:
                parameter.mul_(_spread(kind, name))
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    return folder


def _spread(kind: str, parameter: str) -> float:
    if kind.partition("-")[0] == "idefics":
        return 4.0
    return 12.0 if "q_proj" in parameter or "k_proj" in parameter else 6.0


def _idefics1(folder: Path, kind: str) -> PreTrainedConfig:
    base = kind.endswith("base")
    tokenizer = _sentencepiece(("<fake_token_around_image>", "<image>"), eou=not base)
    size = tokenizer.get_vocab_size()
    extra = 2 if base else 3
    _save_tokenizer(folder, tokenizer, "IdeficsProcessor", llama=True)
    _save_image_processor(
        folder, "IdeficsImageProcessor", {"image_size": 28, "size": {"height": 28, "width": 28}}
    )
    return IdeficsConfig(
        vocab_size=size - extra,
        additional_vocab_size=extra,
        hidden_size=32,
        intermediate_size=64,
        # Each second layer has one of its own for pictures; here the base kind has two of these.
        num_hidden_layers=4 if base else 2,
        num_attention_heads=4,
        cross_layer_interval=2,
        qk_layer_norms=True,
        use_resampler=True,
        max_sequence_length=512,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        alpha_initializer="normal",
        alpha_type="vector",
        vision_config={
            "embed_dim": 32,
            "image_size": 28,
            "patch_size": 14,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
        perceiver_config={
            "use_resampler": True,
            "resampler_n_latents": 4,
            "resampler_depth": 1,
            "resampler_n_heads": 4,
            "resampler_head_dim": 8,
            "qk_layer_norms_perceiver": True,
        },
    )


def _idefics2(folder: Path, kind: str) -> PreTrainedConfig:
    base = kind.endswith("base")
    tokenizer = _sentencepiece(("<fake_token_around_image>", "<image>"), eou=not base)
    _save_tokenizer(
        folder, tokenizer, "Idefics2Processor", llama=True, template=None if base else CHAT_TEMPLATE
    )
    _save_image_processor(
        folder,
        "Idefics2ImageProcessor",
        {
            "do_image_splitting": kind.endswith("split"),
            "size": {"longest_edge": 70, "shortest_edge": 28},
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },
    )
    _write(
        folder / "processor_config.json",
        {"image_seq_len": 4, "processor_class": "Idefics2Processor"},
    )
    return Idefics2Config(
        image_token_id=tokenizer.token_to_id("<image>"),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 70,
            "patch_size": 14,
        },
        perceiver_config={
            "hidden_size": 32,
            "resampler_n_latents": 4,
            "resampler_depth": 1,
            "resampler_n_heads": 4,
            "resampler_head_dim": 8,
            "num_key_value_heads": 2,
        },
        text_config={
            "model_type": "mistral",
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 512,
            "sliding_window": None,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    )


_VIDEOS: dict[str, object] = {
    "video_sampling": {"fps": 1, "max_frames": 12, "video_size": {"longest_edge": 28}}
}


def _idefics3(folder: Path, kind: str) -> PreTrainedConfig:
    bos = "<|begin_of_text|>" if kind == "idefics3" else "<|im_start|>"
    places = ["<global-img>", *(f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7))]
    tokenizer = _byte_level(
        bos,
        end="<|end_of_text|>" if kind == "idefics3" else "<|im_end|>",
        # Idefics3 and the first SmolVLM write positions as text; SmolVLM2 has a token for each.
        places=places if kind == "smolvlm2" else [],
        writes_bos=kind == "idefics3",
    )
    name = "SmolVLMProcessor" if kind == "smolvlm2" else "Idefics3Processor"
    _save_tokenizer(
        folder,
        tokenizer,
        name,
        llama=False,
        template=bos + CHAT_TEMPLATE,
        bos=bos,
        eos="<end_of_utterance>" if kind != "idefics3" else "<|end_of_text|>",
        pad="<|im_end|>" if kind != "idefics3" else "<|end_of_text|>",
    )
    _save_image_processor(
        folder,
        "SmolVLMImageProcessor" if kind == "smolvlm2" else "Idefics3ImageProcessor",
        {
            "do_image_splitting": True,
            "size": {"longest_edge": 84},
            "max_image_size": {"longest_edge": 28},
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            **(_VIDEOS if kind == "smolvlm2" else {}),
        },
    )
    _write(folder / "processor_config.json", {"image_seq_len": 1, "processor_class": name})
    config = SmolVLMConfig if kind == "smolvlm2" else Idefics3Config
    eou = tokenizer.token_to_id("<end_of_utterance>")
    return config(
        image_token_id=tokenizer.token_to_id("<image>"),
        scale_factor=2,
        pad_token_id=0,
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 14,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "pad_token_id": 0,
            "bos_token_id": tokenizer.token_to_id(bos),
            "eos_token_id": eou,
        },
    )


def _sentencepiece(images: tuple[str, ...], *, eou: bool) -> Tokenizer:
    """Return a tokenizer like Llama's, with word marks, byte fallback and a leading `<s>`."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
    split = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.pre_tokenizer = split
    tokenizer.train_from_iterator(_CORPUS, trainer)
    content = json.loads(tokenizer.to_str())
    # Llama's has no pre-tokenizer, and its byte tokens are ordinary vocabulary.
    content["pre_tokenizer"] = None
    content["added_tokens"] = content["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    added = (*images, "<end_of_utterance>") if eou else images
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in added])
    tokenizer.post_processor = post.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def _byte_level(bos: str, *, end: str, places: list[str], writes_bos: bool) -> Tokenizer:
    """Return a tokenizer like Llama 3's or SmolLM2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=[end, bos],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokens = [*places, "<fake_token_around_image>", "<image>", "<end_of_utterance>"]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in tokens])
    if writes_bos:
        tokenizer.post_processor = post.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, 1)]
        )
    return tokenizer


def _save_tokenizer(
    folder: Path,
    tokenizer: Tokenizer,
    processor: str,
    *,
    llama: bool,
    template: str | None = None,
    bos: str = "<s>",
    eos: str = "</s>",
    pad: str = "<unk>",
) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, object] = {
        "tokenizer_class": "LlamaTokenizer" if llama else "PreTrainedTokenizerFast",
        "processor_class": processor,
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": pad,
        "model_max_length": 1024,
    }
    if llama:
        config["unk_token"] = "<unk>"
    _write(folder / "tokenizer_config.json", config)
    if template is not None:
        _write(folder / "chat_template.json", {"chat_template": template})


def _save_image_processor(folder: Path, kind: str, settings: dict[str, object]) -> None:
    _write(folder / "preprocessor_config.json", {"image_processor_type": kind, **settings})


def _write(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
