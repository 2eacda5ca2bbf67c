"""Checkpoints that have the shape of a real model and random weights.

Their folders have the same files as a checkpoint from the Hub.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, cast

from idefics_cli.bench.shapes import Config, RealShape, Vocabulary
from idefics_cli.core.errors import IdeficsError
from idefics_cli.core.types import DtypeName
from idefics_cli.models.families.chat_template import CHAT_TEMPLATE
from idefics_cli.models.families.spec import (
    END_OF_UTTERANCE,
    FAKE_TOKEN,
    IMAGE_TOKEN,
    find_family,
)

if TYPE_CHECKING:
    from torch import Tensor

_SPREAD = 0.02  # standard deviation of the initial weights of these models
_SHARD_BYTES = 2 * 10**9
# All weights repeat this number of random values, because drawing billions would take minutes. The
# number is prime, so that the rows of a matrix differ.
_POOL = 16_777_213
_READY = "bench.json"


def make(
    folder: Path,
    shape: RealShape,
    *,
    dtype: DtypeName,
    layers: int | None = None,
    vision_layers: int | None = None,
) -> int:
    """Write a checkpoint to *folder*, unless it holds the same one already.

    The tokenizer has the vocabulary size and the control tokens of the real one. It spells every
    text in single letters or bytes, so a prompt takes more tokens than with the real tokenizer. A
    picture takes as many tokens as with the real one.

    Args:
        folder: Folder of the checkpoint, made if it does not exist.
        shape: Shape of the model.
        dtype: Dtype of the stored weights.
        layers: Layers of the text model; None keeps all.
        vision_layers: Layers of the vision model; None keeps as many as *layers*.

    Returns:
        The number of weights.

    Raises:
        IdeficsError: If the folder cannot be written, or holds something else.
    """
    config = shape.cut(layers, vision_layers)
    identity: Config = {"shape": shape.name, "dtype": dtype, "config": config}
    try:
        return _made_before(folder, identity) or _write_checkpoint(folder, shape, identity)
    except OSError as error:
        raise IdeficsError(
            f"cannot write the random weights to `{folder}`: {error.strerror or error}",
            hint="`--keep-weights DIR` chooses a folder with more room; fewer `--layers` need less",
        ) from error


def _write_checkpoint(folder: Path, shape: RealShape, identity: Config) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    _write_processor(folder, shape)
    count = _write_weights(folder, identity)
    _write(folder / _READY, {**identity, "parameters": count})
    return count


def _made_before(folder: Path, identity: Config) -> int | None:
    """Return the number of weights in *folder*; None if it is empty or does not exist."""
    ready = folder / _READY
    if ready.is_file():
        known = json.loads(ready.read_text(encoding="utf-8"))
        count = known.pop("parameters", None)
        if known == identity:
            return int(count)
    if folder.is_dir() and any(folder.iterdir()):
        raise IdeficsError(
            f"`{folder}` holds something else already",
            hint="give an empty folder, or the shape and layers that it was made for",
        )
    return None


def _write_weights(folder: Path, identity: Config) -> int:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForImageTextToText

    dtype = str(identity["dtype"])
    # `for_model` removes entries from the dictionaries that it gets, so it gets a copy.
    whole = AutoConfig.for_model(**deepcopy(cast("Config", identity["config"])))
    whole.dtype = dtype
    whole.save_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(whole)
    generator = torch.Generator().manual_seed(0)
    pool = torch.empty(_POOL).normal_(0, _SPREAD, generator=generator).to(getattr(torch, dtype))
    names = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    # Tied weights are one tensor with two names. A checkpoint stores only one name, so the other is
    # left out.
    for tied in getattr(model, "all_tied_weights_keys", {}):
        names.pop(tied, None)
    index: dict[str, str] = {}
    for number, shard in enumerate(_shards(names, pool), start=1):
        file = f"model-{number:05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, file)
    _write(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})
    return sum(_count(shape) for shape in names.values())


def _shards(names: dict[str, tuple[int, ...]], pool: Tensor) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = offset = 0
    for name, shape in names.items():
        tensor = _tensor(name, shape, pool, offset)
        offset = (offset + tensor.numel()) % _POOL
        if shard and size + tensor.nbytes > _SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard


def _tensor(name: str, shape: tuple[int, ...], pool: Tensor, offset: int) -> Tensor:
    import torch

    if len(shape) == 1:
        # As in a new model, the weights of norms are 1 and biases are 0.
        return torch.full(
            shape, 1.0 if "norm" in name and "bias" not in name else 0.0, dtype=pool.dtype
        )
    count = _count(shape)
    values = torch.empty(count, dtype=pool.dtype)
    filled = 0
    while filled < count:
        part = pool[offset : offset + count - filled]
        values[filled : filled + len(part)] = part
        filled += len(part)
        offset = (offset + len(part)) % _POOL
    return values.view(shape)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for edge in shape:
        count *= edge
    return count


def _write_processor(folder: Path, shape: RealShape) -> None:
    vocabulary = shape.vocabulary
    is_llama = vocabulary.kind == "llama"
    name = find_family(shape.family).classes.processor.partition(":")[2]
    _write(folder / "tokenizer.json", _tokenizer(vocabulary))
    settings: Config = {
        "tokenizer_class": "LlamaTokenizer" if is_llama else "PreTrainedTokenizerFast",
        "processor_class": name,
        "bos_token": vocabulary.begin,
        "eos_token": vocabulary.end,
        "pad_token": vocabulary.pad,
        "padding_side": "left",
    }
    if is_llama:
        settings |= {"unk_token": "<unk>", "legacy": True}
    _write(folder / "tokenizer_config.json", settings)
    _write(folder / "preprocessor_config.json", {**shape.images, "processor_class": name})
    _write(
        folder / "processor_config.json",
        {"image_seq_len": shape.image_tokens, "processor_class": name},
    )
    (folder / "chat_template.jinja").write_text(
        shape.template_start + CHAT_TEMPLATE, encoding="utf-8"
    )
    special = vocabulary.special
    ends = {special.get(vocabulary.end, 2), special[END_OF_UTTERANCE]}
    banned = (IMAGE_TOKEN, FAKE_TOKEN)
    _write(
        folder / "generation_config.json",
        {"eos_token_id": sorted(ends), "bad_words_ids": [[special[token]] for token in banned]},
    )


def _tokenizer(vocabulary: Vocabulary) -> Config:
    """Return a `tokenizer.json` with single letters or bytes, and words that no text contains."""
    base: dict[str, int] = {}
    is_llama = vocabulary.kind == "llama"
    if is_llama:
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
        tokens += [chr(code) for code in range(33, 127)]
    else:
        tokens = _byte_letters()
    taken = set(vocabulary.special.values())
    free = (number for number in range(vocabulary.size) if number not in taken)
    base = {token: next(free) for token in tokens}
    mark = "▁" if is_llama else "Ġ"
    base |= {mark + _word(number): number for number in free}
    special = dict(vocabulary.special)
    if is_llama:
        special |= {"<unk>": 0, "<s>": 1, "</s>": 2}
    added = [
        {
            "id": number,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token, number in sorted(special.items(), key=lambda item: item[1])
    ]
    # The special tokens are in the vocabulary too, because tokenizers 0.23 takes their ids from
    # there and not from the list of added tokens.
    model: Config = {"type": "BPE", "vocab": {**base, **special}, "merges": []}
    if is_llama:
        model |= {"unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True}
    return {
        "version": "1.0",
        "added_tokens": added,
        "model": model,
        **(_llama_rules() if is_llama else _byte_rules(vocabulary)),
    }


def _word(number: int) -> str:
    """Return a word of letters for *number*; each number has its own word.

    Words with digits would not do: captions that differ only in their numbers count as replies that
    go in circles, and the run asks for them again.
    """
    letters = ""
    while number:
        number, digit = divmod(number, 26)
        letters = chr(ord("a") + digit) + letters
    return f"w{letters}"


def _llama_rules() -> Config:
    return {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": _begin_with("<s>", 1),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
    }


def _byte_rules(vocabulary: Vocabulary) -> Config:
    rules = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    # Llama 3's tokenizer writes the begin token. SmolLM2's tokenizer does not, because its chat
    # template writes the token.
    begins = vocabulary.begin == "<|begin_of_text|>"
    begin = vocabulary.begin
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", **rules},
        "post_processor": _begin_with(begin, vocabulary.special[begin]) if begins else None,
        "decoder": {"type": "ByteLevel", **rules},
    }


def _begin_with(token: str, number: int) -> Config:
    text = {"Sequence": {"id": "A", "type_id": 0}}
    begin = {"SpecialToken": {"id": token, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [begin, text],
        "pair": [begin, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }


def _byte_letters() -> list[str]:
    """Return the letters that represent bytes in byte-level vocabularies."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def _write(path: Path, content: Config) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
