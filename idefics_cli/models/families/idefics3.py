"""The families Idefics3 (arXiv:2408.12637) and SmolVLM (arXiv:2504.05299).

With pictures they differ only in size, so one class runs both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING

from torch import Tensor

from idefics_cli.core.units import counted
from idefics_cli.models.families.idefics2 import TemplateFamily, strip_padding
from idefics_cli.models.families.picture import PreparedPicture
from idefics_cli.models.families.protocols import Config, Processor
from idefics_cli.models.families.resize import cut_tiles, shrink
from idefics_cli.models.families.spec import FAKE_TOKEN, IMAGE_TOKEN

if TYPE_CHECKING:
    from PIL.Image import Image

_TILE_TOKEN = re.compile(r"<global-img>|<row_\d+_col_\d+>")


class Idefics3(TemplateFamily):
    """The families Idefics3 and SmolVLM: SigLIP on tiles, pixel shuffle, Llama 3 or SmolLM2."""

    def __init__(
        self, processor: Processor, config: Config, *, chats: bool, stop_ids: Iterable[int] = ()
    ) -> None:
        super().__init__(processor, config, chats=chats, stop_ids=stop_ids)
        self._patch = config.vision_config.patch_size
        self._scale = config.scale_factor

    def find_tile_fault(self, height: int, width: int) -> str | None:
        """See `Family.find_tile_fault`. Pixel shuffle needs whole squares of patches."""
        size = f"of {width} x {height} pixels"
        rows, columns = height // self._patch, width // self._patch
        if rows != columns or not rows or rows % self._scale:
            return f"{size}, which are no square of {self._scale * self._patch} pixels"
        features = (rows // self._scale) ** 2
        if features != self.processor.image_seq_len:
            tokens = counted(self.processor.image_seq_len, "token")
            return f"{size}, so {counted(features, 'feature')}, for {tokens}"
        return None

    def image_tokens(self) -> tuple[str, ...]:
        """See `Family.image_tokens`. SmolVLM has a token for each place of a tile in the grid."""
        tiles = (t for t in self.tokenizer.get_added_vocab() if _TILE_TOKEN.fullmatch(t))
        return (*super().image_tokens(), *tiles)

    def _pieces(self, image: Image) -> Sequence[Image]:
        return [shrink(image, self.processor.image_processor, self._scaled)]

    def _make_tiles(self, pieces: Sequence[Image]) -> tuple[Sequence[Tensor], tuple[int, int]]:
        encoded = cut_tiles(
            [list(pieces)], self.processor.image_processor, return_row_col_info=True
        )
        if isinstance(encoded, Tensor):
            raise TypeError("the image processor returned no named tensors")
        grid = int(encoded["rows"][0][0]), int(encoded["cols"][0][0])
        return strip_padding(encoded), grid

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

    def _tokenize(self, text: str, pictures: Sequence[PreparedPicture]) -> list[int]:
        first, *rest = text.split(IMAGE_TOKEN)
        for picture, part in zip(pictures, rest, strict=True):
            first += self._spell_picture(picture) + part
        return self.tokenizer(first)["input_ids"]

    def _spell_picture(self, picture: PreparedPicture) -> str:
        """Return the tokens of one picture as text: for its tiles row by row, then for the whole.

        This does the same as `replace_image_token` of transformers 5.23, processing_idefics3.py.
        """
        images = IMAGE_TOKEN * self.processor.image_seq_len
        whole = f"{FAKE_TOKEN}<global-img>{images}{FAKE_TOKEN}"
        rows, columns = picture.grid
        tiles = ""
        for row in range(1, rows + 1):
            positions = (f"<row_{row}_col_{column}>" for column in range(1, columns + 1))
            tiles += "".join(f"{FAKE_TOKEN}{each}{images}" for each in positions) + "\n"
        return f"{tiles}\n{whole}" if tiles else whole
