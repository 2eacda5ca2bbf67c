"""The built-in model before training: its tokenizer, its processor and its random weights.

The classes are those of Idefics2 in transformers. Only the sizes are tiny.
"""

from __future__ import annotations

import json
import random
from typing import cast

from tokenizers import (
    AddedToken,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers import Tokenizer as RawTokenizer
from torch import nn
from transformers import (
    GenerationConfig,
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    Idefics2Processor,
    PreTrainedTokenizerFast,
)
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

from idefics_cli.demo.conversations import pair_conversation, single_conversation
from idefics_cli.demo.scenes import (
    BACKGROUNDS,
    COLORS,
    DIGITS,
    SHAPES,
    WORDS,
    caption,
    make_scene,
)
from idefics_cli.demo.wordings import SMALL_TALK, WORDINGS
from idefics_cli.models.families.chat_template import CHAT_TEMPLATE
from idefics_cli.models.families.protocols import Processor, Tokenizer
from idefics_cli.models.families.spec import END_OF_UTTERANCE, FAKE_TOKEN, IMAGE_TOKEN

LATENTS = 16
"""Number of tokens that stand for one image."""
LONGEST_EDGE = 112
SHORTEST_EDGE = 42
PATCH = 14
"""Width and height of a patch in pixels."""
VISION_WIDTH = 192
TEXT_WIDTH = 192
PAD_ID = 0
"""Id of the token `<unk>`, which is also the padding."""
SPECIAL_TOKENS = (FAKE_TOKEN, IMAGE_TOKEN, END_OF_UTTERANCE)

_CONTEXT = 1024
_LLAMA_TOKENS = ["<unk>", "<s>", "</s>"]
# Largest size of the vocabulary. The real size is smaller, because only frequent pairs of tokens
# are merged into new ones.
_VOCABULARY = 800


def build_processor() -> Processor:
    """Return the processor: image processor, tokenizer and chat template."""
    image_processor = Idefics2ImageProcessorPil(
        size={"shortest_edge": SHORTEST_EDGE, "longest_edge": LONGEST_EDGE},
        do_image_splitting=False,
        # With these values no real pixel becomes exactly 0. Zeros would be dangerous: the model
        # takes an image of zeros as padding (transformers 5.23, Idefics2Model.get_image_features).
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    processor = Idefics2Processor(
        image_processor, build_tokenizer(), image_seq_len=LATENTS, chat_template=CHAT_TEMPLATE
    )
    return cast(Processor, processor)


def build_tokenizer() -> Tokenizer:
    """Train the tokenizer on texts about scenes, which takes some seconds, and return it.

    Like the tokenizer of Mistral, it is a BPE with byte fallback that writes a space as "▁". So it
    splits prompts as the tokenizer of the real Idefics2 does.
    """
    tokenizer = _untrained_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        min_frequency=5,
        special_tokens=_LLAMA_TOKENS + [f"<0x{byte:02X}>" for byte in range(256)],
        show_progress=False,
        limit_alphabet=200,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer = _with_plain_bytes(tokenizer)
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return cast(
        Tokenizer,
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
            pad_token="<unk>",
            padding_side="left",
            additional_special_tokens=list(SPECIAL_TOKENS),
            model_max_length=_CONTEXT,
        ),
    )


def build_model(tokenizer: Tokenizer) -> nn.Module:
    """Return an `Idefics2ForConditionalGeneration` with random float32 weights.

    The weights are drawn from torch's global random generator.
    """
    fake, image, end = (_id(tokenizer, token) for token in SPECIAL_TOKENS)
    config = Idefics2Config(
        image_token_id=image,
        tie_word_embeddings=True,
        vision_config=_vision_config(),
        perceiver_config=_perceiver_config(),
        text_config=_text_config(len(tokenizer)),
    )
    model = Idefics2ForConditionalGeneration(config)
    # transformers initialises all latents with 1. All 16 would then attend to the same patches.
    model.model.connector.perceiver_resampler.latents.data.normal_(0, 1)
    model.generation_config = GenerationConfig(
        bos_token_id=1,
        eos_token_id=[2, end],
        pad_token_id=PAD_ID,
        bad_words_ids=[[fake], [image]],
    )
    return cast(nn.Module, model)


def _untrained_tokenizer() -> RawTokenizer:
    tokenizer = RawTokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    # A text is split at words, lines and punctuation marks, and no merge crosses such a place.
    # Without the split at the newline, the word "Assistant" of the template would be several
    # tokens.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Split("▁", "merged_with_next"),
            pre_tokenizers.Punctuation("isolated"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def _vision_config() -> dict[str, object]:
    return {
        "hidden_size": VISION_WIDTH,
        "intermediate_size": 3 * VISION_WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "image_size": LONGEST_EDGE,
        "patch_size": PATCH,
        "initializer_range": 0.02,
    }


def _perceiver_config() -> dict[str, object]:
    return {
        "hidden_size": TEXT_WIDTH,
        "resampler_n_latents": LATENTS,
        "resampler_depth": 2,
        "resampler_n_heads": 6,
        "resampler_head_dim": 32,
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-5,
    }


def _text_config(vocabulary: int) -> dict[str, object]:
    return {
        "model_type": "mistral",
        "vocab_size": vocabulary,
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": TEXT_WIDTH // 6,
        "max_position_embeddings": _CONTEXT,
        "sliding_window": None,
        "rms_norm_eps": 1e-5,
        "pad_token_id": PAD_ID,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
    }


def _id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.convert_tokens_to_ids(token)
    if found is None or found == tokenizer.unk_token_id:
        raise ValueError(f"the tokenizer has no {token}")
    return found


def _with_plain_bytes(tokenizer: RawTokenizer) -> RawTokenizer:
    """Return *tokenizer* with the byte tokens as ordinary tokens, as in Mistral's tokenizer."""
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in _LLAMA_TOKENS]
    return RawTokenizer.from_str(json.dumps(state))


def _corpus() -> list[str]:
    """Return the texts to train the tokenizer on; a text that occurs more often counts more."""
    rng = random.Random(0)
    corpus: list[str] = []
    for _ in range(4000):
        scenes = (make_scene(rng), make_scene(rng))
        asked = single_conversation(scenes[0], rng) + pair_conversation(scenes, rng)
        corpus += [text for turn in asked for text in (turn.question, turn.answer)]
        corpus += [caption(scenes[0]), "User:", "Assistant:"]
        corpus += ["User: System:", "\nAssistant:", "\nUser:"]
    messages = [text for column in zip(*SMALL_TALK, strict=True) for text in column]
    messages += [wording for wordings in WORDINGS.values() for wording in wordings]
    for text in messages:
        corpus += [text, text[0].lower() + text[1:]] * 60
    for word in (*WORDS, *DIGITS, *COLORS, *BACKGROUNDS, *SHAPES):
        corpus += [f"the {word} {word}. {word} {word.capitalize()}."] * 50
    letters = "abcdefghijklmnopqrstuvwxyz"
    corpus += [f"{letters}{letters.upper()}0123456789.,:;!?'\"()-/"] * 3
    return corpus
