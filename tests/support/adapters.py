"""LoRA adapters with random numbers, made by PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import peft
import torch
from transformers import PreTrainedModel

from idefics_cli.models.families.classes import model_class
from idefics_cli.models.loading.loader import load_config

TEXT = r".*(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"


def library_model(folder: Path) -> PreTrainedModel:
    config = load_config(folder)
    model = model_class(config.model_type).from_pretrained(folder, config=config)
    return cast("PreTrainedModel", model)


def train(model: PreTrainedModel, folder: Path, **settings: Any) -> Any:
    """Return *model* with an adapter of random numbers, which is written to *folder*."""
    torch.manual_seed(3)
    settings = {"target_modules": TEXT, "r": 4, "lora_alpha": 6, **settings}
    config = peft.LoraConfig(init_lora_weights=False, **settings)
    adapted = peft.get_peft_model(model, config)
    for name, weight in adapted.named_parameters():
        if "modules_to_save" in name or "magnitude" in name:
            weight.data += 0.3 * torch.rand_like(weight)
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    return adapted
