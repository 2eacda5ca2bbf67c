"""The family SmolVLM2 (arXiv:2504.05299): Idefics3 that was trained on videos, too."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property

from torch import Tensor

from idefics_cli.core.types import GenerationRequest
from idefics_cli.images.video import Video
from idefics_cli.models.families.bounded_template import BoundedTemplate
from idefics_cli.models.families.idefics3 import Idefics3
from idefics_cli.models.families.picture import PictureTensors, PreparedPicture
from idefics_cli.models.families.prompt_template import PromptTemplate
from idefics_cli.models.families.spec import IMAGE_TOKEN
from idefics_cli.models.families.videos import (
    VideoFamily,
    choose_frames,
    frame_levels,
    moments_of,
    scale_frames,
    spell_video,
)


class SmolVLM(Idefics3, VideoFamily):
    """The family SmolVLM2. A video is a picture whose tiles are frames, with text between them."""

    def preprocess_video(
        self, video: Video, recall: Callable[[bytes], PictureTensors | None] = lambda digest: None
    ) -> PictureTensors:
        """See `VideoFamily.preprocess_video`."""
        settings = self.video_settings
        chosen = choose_frames(video.facts, settings)
        frames, indices, size = scale_frames(video.read_frames(chosen), settings)
        moments = moments_of(video.facts, indices)
        digest = hashlib.sha256(repr(("video", moments)).encode())
        for frame in frames:
            digest.update(frame.numpy().tobytes())
        if (known := recall(digest.digest())) is not None:
            return known
        picture = PreparedPicture(
            digest=digest.digest(),
            size=size,
            tile_sizes=tuple((frame.shape[1], frame.shape[2]) for frame in frames),
            moments=moments,
        )
        return PictureTensors(picture, tuple(frames), levels=self._video_levels)

    def render(self, request: GenerationRequest, pictures: Sequence[PreparedPicture] = ()) -> str:
        """See `TemplateFamily.render`.

        transformers takes another template for a conversation with videos, in which a video is
        text (5.24, processing_smolvlm.py `apply_chat_template`).
        """
        are_videos = iter([picture.moments is not None for picture in pictures])
        if request.mode == "complete" or not any(picture.moments for picture in pictures):
            return super().render(request, pictures)
        turns = [
            (
                message.role,
                [
                    IMAGE_TOKEN if part is None and next(are_videos) else part
                    for part in self._parts(message)
                ],
            )
            for message in request.messages
        ]
        return self._video_template.render(turns)

    def _spell_picture(self, picture: PreparedPicture) -> str:
        if picture.moments is None:
            return super()._spell_picture(picture)
        frame = PreparedPicture(picture.digest, picture.size, picture.tile_sizes[:1])
        return spell_video(picture.moments, super()._spell_picture(frame))

    @cached_property
    def _video_levels(self) -> Tensor:
        return frame_levels(self.video_settings)

    @cached_property
    def _video_template(self) -> PromptTemplate:
        from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE

        processor = copy.copy(self.processor)
        processor.chat_template = DEFAULT_CHAT_TEMPLATE
        return PromptTemplate(BoundedTemplate(processor))
