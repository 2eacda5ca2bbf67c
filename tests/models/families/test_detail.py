"""How much detail of a picture a model sees: equal to the image processor with the same setting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from idefics_cli.core.errors import PlanError, PromptError
from idefics_cli.core.types import PictureDetail
from idefics_cli.models.families.base import Family
from idefics_cli.models.families.picture import PictureTensors
from idefics_cli.models.hub.facts import find_facts
from idefics_cli.models.loading.loader import load_config, load_family
from idefics_cli.models.planning.picture_costs import picture_costs
from idefics_cli.models.planning.plan import PlanChoices, make_plan
from idefics_cli.ui.views.plan import render_picture_costs
from tests.support import machines
from tests.support.pictures import quadrants
from tests.support.pixels import pixel_values

OWN = PictureDetail()
SIZES = [(90, 60), (60, 90), (28, 28), (27, 29), (101, 7), (7, 101), (2, 2), (300, 200)]
EDGES = {"idefics2": [28, 42, 50, 70], "idefics3": [28, 56, 84, 168], "smolvlm2": [28, 56, 112]}
CASES = [
    (kind, edge, splitting)
    for kind, edges in EDGES.items()
    for edge in edges
    for splitting in (True, False)
]


def family_of(folder: Path, detail: PictureDetail = OWN) -> Family:
    choices = PlanChoices(
        dtype="float32", splitting=detail.splitting, longest_edge=detail.longest_edge
    )
    spec = make_plan(find_facts(str(folder)), choices, machines.cpu(16)).spec
    return load_family(folder, spec, load_config(folder))


def same(one: PictureTensors, other: PictureTensors) -> bool:
    return one.picture.shape == other.picture.shape and all(
        map(torch.equal, one.tiles, other.tiles)
    )


@pytest.mark.parametrize(("kind", "edge", "splitting"), CASES)
def test_a_picture_is_scaled_as_by_the_processor_with_this_size(
    kind: str, edge: int, splitting: bool, checkpoint: Callable[[str], Path]
) -> None:
    detail = PictureDetail(splitting, edge)
    usual, chosen = family_of(checkpoint(kind)), family_of(checkpoint(kind), detail)
    images = usual.processor.image_processor
    size = {**dict(images.size), "longest_edge": edge}
    for width, height in SIZES:
        picture = quadrants(width, height)
        ours = chosen.preprocess(picture)
        assert same(usual.in_detail(detail).preprocess(picture), ours)
        theirs = images([[picture]], return_tensors="pt", size=size, do_image_splitting=splitting)
        assert not isinstance(theirs, torch.Tensor)
        pixels = theirs["pixel_values"][0]
        assert len(pixels) == len(ours.tiles)
        for tile, expected in zip(pixel_values(ours), pixels, strict=True):
            assert torch.equal(tile, expected[:, : tile.shape[1], : tile.shape[2]])


@pytest.mark.parametrize("kind", EDGES)
def test_pictures_in_other_detail_have_other_digests(
    kind: str, checkpoint: Callable[[str], Path]
) -> None:
    family, picture = family_of(checkpoint(kind)), quadrants(90, 60)
    details = [PictureDetail(s, e) for s in (True, False) for e in EDGES[kind]]
    made = [family.in_detail(detail).preprocess(picture).picture.digest for detail in details]
    assert len(set(made)) == len(details)
    assert family.in_detail(PictureDetail()) is family


@pytest.mark.parametrize(
    ("kind", "edge", "hint"),
    [
        ("idefics", 28, "leave the longest edge out"),
        ("idefics2", 71, "from 28 to 70"),
        ("idefics2", 27, "from 28 to 70"),
        ("idefics3", 57, "28, 56, 84, 112, 140 or 168"),
        ("smolvlm2", 196, "28, 56, 84, 112, 140 or 168"),
    ],
)
def test_a_length_that_the_model_cannot_use_is_refused(
    kind: str, edge: int, hint: str, checkpoint: Callable[[str], Path]
) -> None:
    detail = PictureDetail(longest_edge=edge)
    with pytest.raises(PlanError) as planned:
        family_of(checkpoint(kind), detail)
    with pytest.raises(PromptError) as prepared:
        family_of(checkpoint(kind)).in_detail(detail)
    assert hint in str(planned.value.hint)
    assert hint in str(prepared.value.hint)


def test_a_plan_lists_the_tokens_of_each_length() -> None:
    plan = make_plan(find_facts("smolvlm-500m"), PlanChoices(longest_edge=1024), machines.cpu(16))
    assert plan.spec.longest_edge == 1024
    costs = picture_costs(plan.facts, plan.spec)
    assert [cost.longest_edge for cost in costs] == [512, 1024, 1536, 2048, 2560, 3072]
    assert [cost.tiles for cost in costs] == [1, 5, 10, 13, 21, 31]
    assert [cost.longest_edge for cost in costs if cost.is_planned] == [1024]
    assert "1024 pixels *  66     330 (5)" in render_picture_costs(plan)


def test_fewer_pixels_need_less_memory() -> None:
    facts, machine = find_facts("idefics2-8b"), machines.cpu(64)
    small, usual = (make_plan(facts, PlanChoices(longest_edge=e), machine) for e in (448, 980))
    assert small.needs[0].working < usual.needs[0].working
    assert usual.spec.longest_edge is None
