"""Tiles share a forward where padding them costs less than another one."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import pytest
from transformers import Idefics2Config

from idefics_cli.engine.local.vision.tiles import ForwardCost, Group, Size, Tile, group_tiles
from idefics_cli.models.families.idefics2 import count_vision_work
from idefics_cli.models.families.vision_work import VisionWork

# As `encoding` estimates them: one thread in float32, 16 threads in native bfloat16, and a GPU.
ONE_THREAD, MANY_THREADS = ForwardCost(5e7), ForwardCost(5e7 * 16 * 4)
GPU = ForwardCost(2e10, overlaps=True)

PHOTOS: tuple[Size, ...] = ((980, 980), (653, 980), (980, 653), (735, 980), (551, 980), (480, 480))
THUMBNAILS: tuple[Size, ...] = ((112, 112), (84, 112), (112, 84), (70, 112), (98, 98))


def idefics2_8b() -> VisionWork:
    vision = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27}
    text = {"model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14_336}
    return count_vision_work(
        Idefics2Config(
            vision_config={**vision, "patch_size": 14, "num_attention_heads": 16}, text_config=text
        )
    )


def built_in() -> VisionWork:
    return VisionWork(patch=14, layers=6, patch_operations=3_500_000, pair_operations=3072)


def grouped(
    sizes: Iterable[Size],
    work: VisionWork | None,
    cost: ForwardCost,
    *,
    max_pixels: int = 16_000_000,
) -> list[Group]:
    tiles: dict[Tile, Size] = {(b"%d" % i, 0): size for i, size in enumerate(sizes)}
    made = list(group_tiles(tiles, max_pixels=max_pixels, work=work, cost=cost))
    seen = [(tile, size) for g in made for tile, size in zip(g.tiles, g.sizes, strict=True)]
    assert sorted(seen) == sorted(tiles.items()), "each tile once, with its own size"
    return made


def shapes(made: Iterable[Group]) -> list[tuple[int, int, int]]:
    return sorted((len(g.tiles), g.height, g.width) for g in made)


def test_the_work_of_idefics2_8b_is_that_of_its_weights() -> None:
    work = idefics2_8b()
    # 411 M weights in SigLIP's layers, 92 M in the projection.
    assert work.patch_operations == pytest.approx(2 * (411e6 + 92e6), rel=0.01)
    assert work.layers == 27 + 3
    # 4,900 patches: as many operations again, and a quarter more, in attention.
    assert work.operations(980, 980) == pytest.approx(4900 * work.patch_operations * 1.61, rel=0.01)


def test_pictures_of_a_small_model_share_one_forward() -> None:
    assert shapes(grouped(THUMBNAILS, built_in(), ONE_THREAD)) == [(5, 112, 112)]


@pytest.mark.parametrize("cost", [ONE_THREAD, MANY_THREADS, GPU])
def test_photos_of_a_large_model_run_each_at_its_own_shape(cost: ForwardCost) -> None:
    made = grouped(PHOTOS * 2, idefics2_8b(), cost)
    assert shapes(made) == sorted((2, *size) for size in PHOTOS)
    assert not any(group.has_padding for group in made)


def test_small_pictures_of_a_large_model_share_a_forward_that_a_gpu_does_in_no_time() -> None:
    assert shapes(grouped(THUMBNAILS, idefics2_8b(), GPU)) == [(5, 112, 112)]
    assert len(grouped(THUMBNAILS, idefics2_8b(), ONE_THREAD)) == 5


def test_sizes_that_are_nearly_alike_come_together_before_others() -> None:
    # One patch costs half of a layer's overhead.
    work = VisionWork(patch=10, layers=1, patch_operations=1, pair_operations=0)
    made = grouped([(100, 10), (90, 10), (10, 100), (10, 90)], work, ForwardCost(2))
    assert shapes(made) == [(2, 10, 100), (2, 100, 10)]


def test_no_tile_is_padded_if_the_encoder_takes_one_size_only() -> None:
    made = grouped(THUMBNAILS * 2, None, ONE_THREAD)
    assert shapes(made) == sorted((2, *size) for size in THUMBNAILS)


@pytest.mark.parametrize("cost", [ONE_THREAD, MANY_THREADS, GPU])
@pytest.mark.parametrize("work", [built_in(), idefics2_8b(), None])
def test_no_forward_has_more_pixels_than_it_may(work: VisionWork | None, cost: ForwardCost) -> None:
    sizes = [*product(range(28, 113, 14), range(28, 113, 14)), *[(112, 112)] * 20, (400, 400)]
    made = grouped(sizes, work, cost, max_pixels=100_000)
    assert all(len(g.tiles) * g.height * g.width <= 100_000 or len(g.tiles) == 1 for g in made)


@pytest.mark.parametrize("cost", [ONE_THREAD, MANY_THREADS, GPU])
@pytest.mark.parametrize("work", [built_in(), idefics2_8b()])
@pytest.mark.parametrize("sizes", [PHOTOS, THUMBNAILS, PHOTOS + THUMBNAILS])
def test_grouping_never_costs_more_than_a_forward_for_each_size(
    sizes: tuple[Size, ...], work: VisionWork, cost: ForwardCost
) -> None:
    def total_cost(made: Iterable[Group]) -> float:
        total = 0.0
        for group in made:
            arithmetic = len(group.tiles) * work.operations(group.height, group.width)
            starting = work.layers * cost.layer_operations
            total += max(arithmetic, starting) if cost.overlaps else arithmetic + starting
        return total

    assert total_cost(grouped(sizes, work, cost)) <= total_cost(grouped(sizes, None, cost))
