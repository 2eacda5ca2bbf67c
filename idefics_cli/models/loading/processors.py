"""The processor of a checkpoint, made from its files.

transformers' `AutoProcessor` is no option: for SmolVLM2 it needs torchvision and num2words, which
only videos use, and version 5.17 needs torchvision for every family. The classes themselves need
neither. Tests compare the result with that of `AutoProcessor`.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

from transformers import AutoTokenizer

from idefics_cli.core.errors import ModelError
from idefics_cli.models.families.classes import processor_classes
from idefics_cli.models.families.protocols import Config, Processor
from idefics_cli.models.families.spec import FamilySpec, find_family
from idefics_cli.models.hub.checkpoint import tile_tokens
from idefics_cli.models.hub.files import read_json, read_text


def load_processor(folder: Path, config: Config) -> Processor:
    """Return the processor of the checkpoint in *folder*, which works with PIL and numpy.

    Raises:
        ModelError: If it has no tokenizer.
    """
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        # transformers would silently invent an empty vocabulary.
        raise ModelError(f"`{folder.name}` has no tokenizer", hint="`tokenizer.json` is missing")
    family = find_family(config.model_type)
    image_class, processor_class = processor_classes(family.name)
    # `legacy` keeps the word mark `▁` after special tokens. Saved again, checkpoints lose the flag.
    legacy = {"legacy": True} if family.needs_legacy_tokenizer else {}
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **legacy)
    settings: dict[str, object] = {}
    if family.prompt == "template":
        settings["image_seq_len"] = _image_tokens(folder, family)
        settings["chat_template"] = _chat_template(folder) or tokenizer.chat_template
    image_processor = image_class.from_pretrained(folder)
    made = processor_class(image_processor=image_processor, tokenizer=tokenizer, **settings)
    return cast("Processor", made)


def _image_tokens(folder: Path, family: FamilySpec) -> int:
    """Return the number of `<image>` tokens for one image or one tile."""
    stated = read_json(folder / "processor_config.json", folder.name).get("image_seq_len")
    if isinstance(stated, int):
        return stated
    return tile_tokens(read_json(folder / "config.json", folder.name), family)


def _chat_template(folder: Path) -> str | None:
    """Return the chat template from the newer or one of the older files."""
    text = read_text(folder / "chat_template.jinja", folder.name)
    if text is not None:
        return text
    for name in ("chat_template.json", "processor_config.json"):
        template = read_json(folder / name, folder.name).get("chat_template")
        if isinstance(template, str):
            return template
    return None
