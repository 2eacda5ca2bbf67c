"""A check of a loaded processor: its prompts and pictures must have the form the model takes."""

from __future__ import annotations

from PIL import Image

from idefics_cli.core.errors import ModelError
from idefics_cli.core.types import Attachment, GenerationRequest, Message
from idefics_cli.models.families.base import Family
from idefics_cli.models.families.picture import PreparedPicture
from idefics_cli.models.families.spec import IMAGE_TOKEN
from idefics_cli.models.families.videos import VideoFamily

# The picture is wide, so that families that cut pictures into a grid make only one row of tiles.
_SIZE = (128, 16)


def check_family(family: Family, *, name: str) -> None:
    """Check that the processor writes one mark for each picture, and a token for each feature.

    Without this check, the first question would end in an error of transformers, or the model
    would answer without having got the picture. The check preprocesses one small picture.

    Args:
        family: The family, with the processor of the checkpoint.
        name: Name of the model in errors.

    Raises:
        ModelError: If a check fails. The message says what is wrong in which file.
    """
    if family.template_fault is not None:
        raise ModelError(
            f"the chat template of `{name}` {family.template_fault}",
            hint=f"write a template with one `{IMAGE_TOKEN}` for each picture to "
            "chat_template.jinja in its folder; `idefics ask --raw` needs no template",
        )
    picture = family.preprocess(Image.new("RGB", _SIZE, (127, 127, 127))).picture
    _check_sizes(family, picture, name)
    # The check uses a raw prompt, because a template may refuse this message, for example if it
    # wants a system message.
    message = Message("user", (Attachment("picture"), " What is it?"))
    request = GenerationRequest((message,), mode="complete")
    (ids,) = family.encode([request], [[picture]])["input_ids"].tolist()
    try:
        family.prefix_keys(ids, [picture])
    except ValueError as error:
        raise ModelError(
            f"the tokenizer of `{name}` does not know `{IMAGE_TOKEN}` as one token",
            hint="copy the tokenizer's files of the base model next to the weights",
        ) from error


def _check_sizes(family: Family, picture: PreparedPicture, name: str) -> None:
    sizes = list(picture.tile_sizes)
    if isinstance(family, VideoFamily):
        sizes.append((family.video_settings.frame_edge, family.video_settings.frame_edge))
    for height, width in sizes:
        if fault := family.find_tile_fault(height, width):
            raise ModelError(
                f"the image processor of `{name}` does not fit its model: the tiles of a picture "
                f"are {fault}",
                hint="correct the sizes in preprocessor_config.json, or image_size and patch_size "
                "in config.json",
            )
