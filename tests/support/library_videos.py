"""The video processor of transformers, called directly, with stand-ins for what is not installed.

It needs torchvision for `resize` and `normalize`, and num2words for the words of a number. The
stand-ins do the same with torch: see torchvision 0.28, transforms/v2/functional.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import pytest
import torch
from transformers import AutoTokenizer, image_processing_backends, video_processing_utils
from transformers.models.smolvlm import processing_smolvlm
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import SmolVLMProcessor
from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor
from transformers.video_utils import VideoMetadata, read_video_pyav

from tests.support.reference import Reference

_MODES = {0: "nearest-exact", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_WORDS = {1: "one", 2: "two", 3: "three", 4: "four", 8: "eight", 12: "twelve"}


def install_stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the video processor work without torchvision and num2words."""
    if find_spec("num2words") is None:
        monkeypatch.setattr(processing_smolvlm, "num2words", _WORDS.__getitem__)
    if find_spec("torchvision") is not None:
        return
    # It looks up classes that need torchvision.
    monkeypatch.setattr(SmolVLMProcessor, "check_argument_for_proper_class", lambda *_: None)
    functional = SimpleNamespace(
        InterpolationMode=SimpleNamespace(**{mode.upper(): mode for mode in _MODES.values()}),
        grayscale_to_rgb=lambda frames: frames,
        normalize=_normalize,
        resize=_resize,
    )
    for module in (image_processing_backends, video_processing_utils):
        monkeypatch.setattr(module, "tvF", functional, raising=False)
    patch = monkeypatch.setattr
    patch(image_processing_backends, "pil_torch_interpolation_mapping", _MODES)
    # torchvision 0.27 belongs to torch 2.12.
    has_lanczos = hasattr(torch.ops.aten, "_upsample_lanczos2d_aa")
    patch(image_processing_backends, "is_torchvision_greater_or_equal", lambda _: has_lanczos)


def _resize(
    image: torch.Tensor, size: tuple[int, int], *, interpolation: str, antialias: bool
) -> torch.Tensor:
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    frames = image.reshape(-1, *image.shape[-3:])
    smooth = interpolation != "nearest-exact"
    made = torch.nn.functional.interpolate(
        frames,
        list(size),
        mode=interpolation,
        align_corners=False if smooth else None,
        antialias=antialias and smooth,
    )
    return made.reshape(*image.shape[:-2], *size)


def _normalize(
    image: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, *, inplace: bool = False
) -> torch.Tensor:
    centred = image.sub(torch.as_tensor(mean).view(-1, 1, 1))
    return centred.div_(torch.as_tensor(std).view(-1, 1, 1))


# Any: processors of transformers have no types.
def video_processor(folder: Path) -> Any:
    """Return the video processor of the checkpoint in *folder*."""
    return SmolVLMVideoProcessor.from_pretrained(folder)


def with_videos(reference: Reference, folder: Path) -> Reference:
    """Return *reference* with the processor that takes videos."""
    processor = SmolVLMProcessor(
        SmolVLMImageProcessorPil.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
        video_processor(folder),
        image_seq_len=reference.processor.image_seq_len,
        chat_template=reference.processor.chat_template,
    )
    return Reference(reference.kind, processor, reference.model)


def video_inputs(
    reference: Reference, turns: Sequence[tuple[str, Sequence[Path], str]]
) -> dict[str, torch.Tensor]:
    """Return the model inputs of one conversation; each turn has a role, videos and a text."""
    processor = reference.processor
    conversation = [
        {
            "role": role,
            "content": [*({"type": "video"} for _ in paths), {"type": "text", "text": text}],
        }
        for role, paths, text in turns
    ]
    text = processor.apply_chat_template(conversation, add_generation_prompt=True)
    read = [read_video(path, processor.video_processor) for _, paths, _ in turns for path in paths]
    videos, metadata = [frames for frames, _ in read], [facts for _, facts in read]
    inputs = dict(
        processor(
            text=[text],
            videos=[videos],
            return_tensors="pt",
            add_special_tokens=False,
            do_sample_frames=False,
            video_metadata=[metadata],
        )
    )
    # The model takes the videos of one conversation as frames of one row.
    for name in ("pixel_values", "pixel_attention_mask"):
        inputs[name] = inputs[name].flatten(0, 1)[None]
    return inputs


# Any: see `video_processor`.
def read_video(path: Path, processor: Any) -> tuple[Any, VideoMetadata]:
    """Return the sampled frames of a video, as `read_video_pyav` does, and its metadata."""

    def choose(metadata: VideoMetadata) -> Any:
        if not metadata.total_num_frames:
            # The header has no number of frames; torchcodec, the usual decoder, counts them.
            with av.open(str(path)) as container:
                metadata.total_num_frames = sum(1 for _ in container.decode(video=0))
            metadata.duration = metadata.total_num_frames / metadata.fps
        return processor.sample_frames(metadata, num_frames=processor.num_frames, fps=processor.fps)

    frames, metadata = read_video_pyav(str(path), choose)
    return frames, metadata
