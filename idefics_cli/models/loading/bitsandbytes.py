"""The settings of bitsandbytes for a `LoadSpec`."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from idefics_cli.core.imports import import_bitsandbytes
from idefics_cli.core.types import LoadSpec
from idefics_cli.models.families.spec import find_family

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig


def bitsandbytes_config(spec: LoadSpec) -> BitsAndBytesConfig | None:
    """Return the settings for `from_pretrained`, or None if nothing is quantized."""
    if spec.quantization == "none":
        return None
    import torch
    from transformers import BitsAndBytesConfig

    # transformers would import it, slower.
    with suppress(ImportError):
        import_bitsandbytes()
    skipped = list(find_family(spec.family).unquantized)
    if spec.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, spec.dtype),
        llm_int8_skip_modules=skipped,
    )
