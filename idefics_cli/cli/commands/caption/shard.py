"""`--shard`: the part of a run that this task captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from idefics_cli.cli.commands.caption.inputs import Inputs
from idefics_cli.cli.invocation import Invocation
from idefics_cli.core.errors import UsageError
from idefics_cli.core.units import counted

if TYPE_CHECKING:
    from idefics_cli.caption.item import CaptionItem
    from idefics_cli.caption.job import CaptionJob
    from idefics_cli.caption.output import CaptionOutput
    from idefics_cli.caption.shards.schedulers import ChosenShard


def find_shard(invocation: Invocation, given: Inputs, output: CaptionOutput) -> ChosenShard | None:
    """Return the shard that the settings name; None if the run has no shards.

    Raises:
        UsageError: If there is no such shard, or the run cannot be divided.
    """
    text = invocation.settings.shard
    if text is None:
        return None
    from idefics_cli.caption.shards.schedulers import choose_shard

    chosen = choose_shard(text, invocation.services.environ)
    if given.fileless:
        raise UsageError(
            f"--shard divides files, and {given.fileless} is one picture for every task",
            hint="leave `--shard` out, or name files and folders",
        )
    output.of_shard(chosen.shard)
    return chosen


def with_shard(
    invocation: Invocation, chosen: ChosenShard, job: CaptionJob, output: CaptionOutput
) -> tuple[CaptionJob, CaptionOutput]:
    """Return the part of *job* that belongs to the shard, and its output; tell what was chosen.

    Raises:
        UsageError: If the shards could not become one data set.
    """
    from idefics_cli.caption.resume.split import split_off
    from idefics_cli.caption.sinks.dataset import check_dataset, is_dataset

    path = output.path
    if path is not None and is_dataset(path):
        check_dataset(path, (picture.key for picture in job.pictures), job.answer_columns)
    own, others = split_off(job.pictures, chosen.shard, _folder_of(output))
    job = replace(job, pictures=own, others=others)
    where = f" ({chosen.source})" if chosen.source else ""
    invocation.console.note(f"shard {chosen.shard}{where}: {_parts(own, others)}")
    return job, output.of_shard(chosen.shard)


def tars_of(chosen: ChosenShard | None, output: CaptionOutput) -> Callable[[str], bool]:
    """Return whether the pictures of an archive belong to this task; see `discover`."""
    if chosen is None:
        return lambda path: True
    from idefics_cli.caption.resume.names import identity

    shard, folder = chosen.shard, _folder_of(output)
    return lambda path: shard.has(identity(path, folder))


def _folder_of(output: CaptionOutput) -> Path:
    """Return the folder from which pictures are named, to find their shard."""
    if output.path is None:
        return Path()
    return output.path if output.sink.output == "folder" else output.path.parent


def _parts(own: Sequence[CaptionItem], others: Sequence[CaptionItem]) -> str:
    """Return how many pictures, or archives, of how many belong to the shard."""
    from idefics_cli.caption.resume.split import count_units

    some, rest = count_units(own), count_units(others)
    if some == len(own) and not any(picture.key.lower().endswith(".tar") for picture in others):
        return f"{some} of {counted(some + rest, 'picture')}"
    return f"{counted(len(own), 'picture')} in {some} of {counted(some + rest, 'file')}"
