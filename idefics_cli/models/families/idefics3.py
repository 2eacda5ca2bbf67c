"""Idefics3 (arXiv:2408.12637) and SmolVLM (arXiv:2504.05299), which differ in size only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING

from torch import Tensor

from idefics_cli.models.families.idefics2 import TemplateFamily, without_padding
from idefics_cli.models.families.picture import PreparedPicture
from idefics_cli.models.families.resize import shrunk
from idefics_cli.models.families.spec import FAKE_TOKEN, IMAGE_TOKEN

if TYPE_CHECKING:
    from PIL.Image import Image

_TILE_TOKEN = re.compile(r"<global-img>|<row_\d+_col_\d+>")


class Idefics3(TemplateFamily):
    """SigLIP on tiles, pixel shuffle, and Llama 3 or SmolLM2."""

    def image_tokens(self) -> tuple[str, ...]:
        """See `Family.image_tokens`; SmolVLM has one token for each tile's place."""
        tiles = (t for t in self.tokenizer.get_added_vocab() if _TILE_TOKEN.fullmatch(t))
        return (*super().image_tokens(), *tiles)

    def _pieces(self, image: Image) -> Sequence[Image]:
        return [shrunk(image, self.processor.image_processor, self._scaled)]

    def _tiles(self, pieces: Sequence[Image]) -> tuple[Sequence[Tensor], tuple[int, int]]:
        encoded = self.processor.image_processor(
            [list(pieces)], return_tensors="pt", return_row_col_info=True
        )
        if isinstance(encoded, Tensor):
            raise TypeError("the image processor gave no names")
        grid = int(encoded["rows"][0][0]), int(encoded["cols"][0][0])
        return without_padding(encoded), grid

    def _scaled(self, height: int, width: int) -> tuple[int, int]:
        from transformers.models.idefics3.image_processing_pil_idefics3 import (
            get_resize_output_image_size,
        )

        longest = dict(self.processor.image_processor.size).get("longest_edge")
        if not longest:
            return height, width
        scaled: tuple[int, int] = get_resize_output_image_size(
            SimpleNamespace(shape=(3, height, width)), longest
        )
        return scaled

    def _ids(self, text: str, pictures: Sequence[PreparedPicture]) -> list[int]:
        first, *rest = text.split(IMAGE_TOKEN)
        for picture, part in zip(pictures, rest, strict=True):
            first += self._written(picture) + part
        return self.tokenizer(first)["input_ids"]

    def _written(self, picture: PreparedPicture) -> str:
        """Return the tokens of one picture: those of its tiles row by row, then of the whole.

        As `replace_image_token` of transformers 5.23, processing_idefics3.py.
        """
        images = IMAGE_TOKEN * self.processor.image_seq_len
        whole = f"{FAKE_TOKEN}<global-img>{images}{FAKE_TOKEN}"
        rows, columns = picture.grid
        tiles = ""
        for row in range(1, rows + 1):
            places = (f"<row_{row}_col_{column}>" for column in range(1, columns + 1))
            tiles += "".join(f"{FAKE_TOKEN}{place}{images}" for place in places) + "\n"
        return f"{tiles}\n{whole}" if tiles else whole
