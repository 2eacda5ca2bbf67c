"""Idefics3 (arXiv:2408.12637) and SmolVLM (arXiv:2504.05299), which differ in size only."""

from __future__ import annotations

import re

from idefics_cli.models.families.base import END_OF_UTTERANCE
from idefics_cli.models.families.idefics2 import TemplateFamily

_TILE_TOKEN = re.compile(r"<global-img>|<row_\d+_col_\d+>")


class Idefics3(TemplateFamily):
    """SigLIP on tiles, pixel shuffle, and Llama 3 or SmolLM2."""

    def image_tokens(self) -> tuple[str, ...]:
        """See `Family.image_tokens`; SmolVLM has one token for each tile's place."""
        tiles = (t for t in self.tokenizer.get_added_vocab() if _TILE_TOKEN.fullmatch(t))
        return (*super().image_tokens(), *tiles)

    def stop_tokens(self) -> tuple[str, ...]:
        """See `Family.stop_tokens`; Llama 3 may also end a turn its own way."""
        return (END_OF_UTTERANCE, "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>")
