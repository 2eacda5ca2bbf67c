"""A shard has its own pictures, its own files, and its number from the user or a scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from idefics_cli.caption.resume.split import split_off
from idefics_cli.caption.shards.schedulers import choose_shard
from idefics_cli.caption.shards.shard import Shard
from idefics_cli.core.errors import UsageError
from tests.support.captioning import photo_job

SLURM = {
    "SLURM_ARRAY_TASK_ID": "3",
    "SLURM_ARRAY_TASK_MIN": "0",
    "SLURM_ARRAY_TASK_MAX": "15",
    "SLURM_ARRAY_TASK_STEP": "1",
    "SLURM_ARRAY_TASK_COUNT": "16",
}
AWS = {"AWS_BATCH_JOB_ARRAY_INDEX": "3", "AWS_BATCH_JOB_ARRAY_SIZE": "16"}
KUBERNETES = {"JOB_COMPLETION_INDEX": "3"}
SKYPILOT = {"SKYPILOT_NODE_RANK": "3", "SKYPILOT_NUM_NODES": "16"}
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "16"}


@pytest.mark.parametrize("count", [1, 3, 16])
def test_every_picture_belongs_to_one_shard_also_if_tasks_list_at_other_times(count: int) -> None:
    early = photo_job([f"photos/{number:03}.jpg" for number in range(0, 400, 2)]).pictures
    late = photo_job([f"photos/{number:03}.jpg" for number in range(400)]).pictures
    shards = [Shard(index, count) for index in range(count)]
    parts = [split_off(late, shard, Path("out"))[0] for shard in shards]
    parts_before = [split_off(early, shard, Path("out"))[0] for shard in shards]

    assert sorted(p.key for part in parts for p in part) == [p.key for p in late]
    for before, after in zip(parts_before, parts, strict=True):
        assert set(before) <= set(after)
    sizes = [len(part) for part in parts]
    assert min(sizes) > 400 / count / 2


def test_the_shard_of_a_picture_never_changes_between_versions() -> None:
    # A run that another version began is continued with the same division.
    shards = [next(i for i in range(16) if Shard(i, 16).has(f"a/{n}.jpg")) for n in range(12)]
    assert shards == [5, 4, 10, 1, 15, 14, 15, 2, 14, 10, 0, 3]
    assert Shard(0, 1).has("caf\udce9.jpg")


def test_a_picture_belongs_to_the_same_shard_wherever_the_folders_are_mounted() -> None:
    here = photo_job([f"/mnt/a/photos/{n}.jpg" for n in range(50)]).pictures
    there = photo_job([f"/home/b/photos/{n}.jpg" for n in range(50)]).pictures
    own, others = split_off(here, Shard(1, 3), Path("/mnt/a/out"))
    same = split_off(there, Shard(1, 3), Path("/home/b/out"))[0]

    assert [Path(p.key).name for p in own] == [Path(p.key).name for p in same]
    assert len(own) + len(others) == 50


@pytest.mark.parametrize("name", ["out/captions.jsonl", "captions", "a-00001-of-00002.csv", ".x"])
def test_the_file_of_a_shard_has_its_number_and_gives_it_back(name: str) -> None:
    whole = Path(name)
    path = Shard(3, 16).path(whole)
    assert path.parent == whole.parent
    assert Shard.of_name(path.name, whole) == Shard(3, 16)
    assert Shard.of_name(whole.name, whole) is None
    assert Shard.of_name(Shard(3, 16).path(Path("other.jsonl")).name, whole) is None


def test_files_of_shards_sort_by_number() -> None:
    assert Shard(3, 16).path(Path("out/captions.jsonl")) == Path(
        "out/captions-00003-of-00016.jsonl"
    )
    assert Shard.of_name("captions-00016-of-00016.jsonl", Path("captions.jsonl")) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("16/16", "there is no shard `16/16`: shards count from 0"),
        ("1/0", "`1/0` is not a shard: the number of shards is from 1 to 99999"),
        ("0/100000", "`0/100000` is not a shard: the number of shards is from 1 to 99999"),
    ],
)
def test_a_shard_that_there_is_not_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        choose_shard(text, {})
    assert str(caught.value) == message
    assert "--shard 0/" in (caught.value.hint or "")


def test_the_user_names_a_shard_whatever_a_scheduler_says() -> None:
    chosen = choose_shard("5/7", SLURM)
    assert (chosen.shard, chosen.source) == (Shard(5, 7), "")


@pytest.mark.parametrize("environ", [SLURM, AWS, SKYPILOT, TORCHRUN])
def test_a_scheduler_says_which_shard_a_task_is(environ: Mapping[str, str]) -> None:
    chosen = choose_shard("auto", environ)
    assert chosen.shard == Shard(3, 16)
    assert chosen.source in environ
    assert choose_shard("auto/16", environ).shard == Shard(3, 16)


def test_a_kubernetes_job_needs_the_number_of_shards() -> None:
    assert choose_shard("auto/16", KUBERNETES).shard == Shard(3, 16)
    with pytest.raises(UsageError, match="does not say how many tasks there are"):
        choose_shard("auto", KUBERNETES)


def test_an_array_may_count_from_one_or_in_steps() -> None:
    first = {**SLURM, "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "16"}
    assert choose_shard("auto", first).shard == Shard(2, 16)
    steps = {"ID": "9", "MIN": "1", "MAX": "31", "STEP": "2", "COUNT": "16"}
    stepped = {f"SLURM_ARRAY_TASK_{name}": text for name, text in steps.items()}
    assert choose_shard("auto", stepped).shard == Shard(4, 16)


@pytest.mark.parametrize(
    ("low", "high", "count"), [("3", "7", "2"), ("3", "3", "1"), ("0", "5", "2")]
)
def test_an_array_that_repeats_some_tasks_is_no_other_division(
    low: str, high: str, count: str
) -> None:
    again = {
        **SLURM,
        "SLURM_ARRAY_TASK_MIN": low,
        "SLURM_ARRAY_TASK_MAX": high,
        "SLURM_ARRAY_TASK_COUNT": count,
    }
    with pytest.raises(UsageError, match="does not say how many shards there are"):
        choose_shard("auto", again)
    assert choose_shard("auto/16", again).shard == Shard(3, 16)


def test_schedulers_that_disagree_are_told_and_those_with_one_task_do_not_count() -> None:
    with pytest.raises(UsageError, match="SLURM_ARRAY_TASK_ID and RANK are set"):
        choose_shard("auto", {**SLURM, **TORCHRUN})
    alone = {"RANK": "0", "WORLD_SIZE": "1", "SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_NODES": "1"}
    assert choose_shard("auto", {**SLURM, **alone}).shard == Shard(3, 16)
    assert choose_shard("auto", {"RANK": "0", "WORLD_SIZE": "1"}).shard == Shard(0, 1)


def test_without_a_scheduler_there_is_no_shard_and_a_wrong_variable_is_named() -> None:
    with pytest.raises(UsageError, match="no variable of a scheduler is set"):
        choose_shard("auto", {"PATH": "/bin"})
    with pytest.raises(UsageError, match="the variable RANK is `x`, which is not a number"):
        choose_shard("auto", {"RANK": "x", "WORLD_SIZE": "2"})
    with pytest.raises(UsageError, match="there is no shard `20/16`"):
        choose_shard("auto/16", {"JOB_COMPLETION_INDEX": "20"})
