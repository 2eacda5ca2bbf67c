"""The processor of a checkpoint, made from its files.

This module does not use transformers' `AutoProcessor`, which needs torchvision and num2words for
SmolVLM2, although only videos use them; in version 5.17 it needs torchvision for every family. The
processor classes themselves need neither. Tests compare the result with that of `AutoProcessor`.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tokenizers import Tokenizer as RawTokenizer
from transformers import AutoTokenizer

from idefics_cli.core.errors import ModelError
from idefics_cli.models.families.classes import processor_classes
from idefics_cli.models.families.geometry import Json
from idefics_cli.models.families.protocols import Config, Processor, Tokenizer
from idefics_cli.models.families.spec import (
    END_OF_UTTERANCE,
    FAKE_TOKEN,
    FamilySpec,
    find_family,
)
from idefics_cli.models.hub.checkpoint import image_settings
from idefics_cli.models.hub.files import read_json, read_text
from idefics_cli.models.hub.limits import check_scaling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_processor(folder: Path, config: Config) -> Processor:
    """Return the processor of the checkpoint in *folder*; it works with PIL and numpy.

    Raises:
        ModelError: If the checkpoint has no tokenizer.
    """
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        # transformers would make a tokenizer with an empty vocabulary, without an error.
        raise ModelError(f"`{folder.name}` has no tokenizer", hint="`tokenizer.json` is missing")
    family = find_family(config.model_type)
    image_class, processor_class = processor_classes(family.name)
    tokenizer = load_tokenizer(folder, family)
    raw = read_json(folder / "config.json", folder.name)
    images = image_settings(folder, folder.name)
    check_scaling(images, raw, family.geometry, folder.name)
    image_processor = image_class.from_pretrained(folder, **_tile_settings(images, raw, family))
    settings: dict[str, object] = {}
    if family.prompt == "template":
        settings["image_seq_len"] = _image_tokens(image_processor, raw, family)
        settings["chat_template"] = _chat_template(folder) or tokenizer.chat_template
    made = processor_class(image_processor=image_processor, tokenizer=tokenizer, **settings)
    return cast("Processor", made)


def load_tokenizer(folder: Path, family: FamilySpec) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the checkpoint in *folder*, with the ids of the training.

    Some families need the flag `legacy`, which keeps the word mark `▁` after special tokens. The
    files do not tell whether a checkpoint was trained with it, because a checkpoint that was saved
    again has lost the flag. So a tokenizer is made with the flag and, if this does not give the ids
    of `tokenizer.json`, one without it.

    Raises:
        ModelError: If the tokenizer needs a package that is not installed.
    """
    has_own_format = (folder / "tokenizer.json").exists()
    if not has_own_format and find_spec("sentencepiece") is None:
        raise ModelError(
            f"`{folder.name}` has only tokenizer.model, which needs the package sentencepiece",
            hint="pip install sentencepiece; or add tokenizer.json to the folder",
        )
    options = {"legacy": True} if family.needs_legacy_tokenizer else {}
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
    if options and has_own_format and not gives_ids_of_file(tokenizer, folder):
        plain = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if gives_ids_of_file(plain, folder):
            return plain
    return tokenizer


def gives_ids_of_file(tokenizer: Tokenizer, folder: Path) -> bool:
    """Return whether *tokenizer* gives the ids of `tokenizer.json`, if there is one.

    transformers 5 builds Llama tokenizers anew, and may then drop the word mark `▁` after a special
    token. This changes every prompt without an error.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        return True
    raw = RawTokenizer.from_file(str(path))
    # The probe needs a special token that the checkpoint has: base models have no chat token, and
    # some checkpoints add their image tokens later.
    tokens = (END_OF_UTTERANCE, FAKE_TOKEN, str(tokenizer.bos_token))
    mark = next((token for token in tokens if raw.token_to_id(token) is not None), "")
    probe = f"User: Hi there{mark}\nAssistant: A cat"
    expected = raw.encode(probe, add_special_tokens=False).ids
    return list(tokenizer(probe, add_special_tokens=False)["input_ids"]) == expected


def _tile_settings(images: Json, config: Json, family: FamilySpec) -> Json:
    """Return the settings of tiles that the image processor's file leaves out.

    transformers would fill in the settings of the largest models of the family instead.
    """
    geometry = family.geometry
    if geometry.tile_settings is None:
        return {}
    needed = geometry.tile_settings(geometry.vision_number(config, "image_size"))
    if images.get("image_size") is not None:  # IDEFICS-1's own name for its size
        return {}
    return {key: value for key, value in needed.items() if images.get(key) is None}


def _image_tokens(image_processor: object, config: Json, family: FamilySpec) -> int:
    """Return the number of `<image>` tokens for one tile.

    The number is computed from the model's config. Processor files that were saved again may state
    the number of another model.
    """
    geometry = family.geometry
    edge = dict(getattr(image_processor, "max_image_size", None) or {}).get("longest_edge")
    patch = geometry.vision_number(config, "patch_size")
    patches = (edge // patch) ** 2 if edge else geometry.patches(config, {})
    return geometry.count_tile_tokens(config, patches)


def _chat_template(folder: Path) -> str | None:
    """Return the chat template from `chat_template.jinja`, or from one of the older JSON files."""
    text = read_text(folder / "chat_template.jinja", folder.name)
    if text is not None:
        return text
    for name in ("chat_template.json", "processor_config.json"):
        template = read_json(folder / name, folder.name).get("chat_template")
        if isinstance(template, str):
            return template
    return None
