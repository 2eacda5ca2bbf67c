"""How much detail of a picture a model sees, as settings of transformers' image processors."""

from __future__ import annotations

import copy

from idefics_cli.core.types import PictureDetail
from idefics_cli.models.families.geometry import Edges, Geometry
from idefics_cli.models.families.protocols import ImageProcessor, VisionConfig


def find_edges(processor: ImageProcessor, vision: VisionConfig, geometry: Geometry) -> Edges | None:
    """Return the lengths to which a loaded model can scale pictures; None if there is only one."""
    if geometry.scaled_edges is None or not processor.do_resize:
        return None
    tile = getattr(processor, "max_image_size", None)
    images = {"size": dict(processor.size), "max_image_size": dict(tile) if tile else {}}
    return geometry.scaled_edges(images, vision.image_size, vision.patch_size)


def without_own(detail: PictureDetail, processor: ImageProcessor) -> PictureDetail:
    """Return *detail* without the wishes that *processor* fulfils anyway, or cannot fulfil."""
    splits = getattr(processor, "do_image_splitting", None)
    edge = dict(processor.size).get("longest_edge")
    return PictureDetail(
        None if splits is None or detail.splitting == splits else detail.splitting,
        None if detail.longest_edge == edge else detail.longest_edge,
    )


def with_detail(processor: ImageProcessor, detail: PictureDetail) -> ImageProcessor:
    """Return *processor* with the settings for *detail*, as a copy if they differ.

    A family that does not split pictures ignores `PictureDetail.splitting`.
    """
    if detail == PictureDetail():
        return processor
    changed = copy.copy(processor)
    if detail.splitting is not None and hasattr(changed, "do_image_splitting"):
        changed.do_image_splitting = detail.splitting
    if detail.longest_edge is not None:
        # In transformers, the size is a `SizeDict`. Its constructor takes the keys of a dict as
        # keyword arguments.
        edges = {**dict(processor.size), "longest_edge": detail.longest_edge}
        changed.size = type(processor.size)(**edges)
    return changed
