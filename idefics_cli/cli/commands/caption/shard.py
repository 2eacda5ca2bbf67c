"""`--shard`: the part of a run that this task captions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from idefics_cli.cli.commands.caption.inputs import Inputs
from idefics_cli.cli.invocation import Invocation
from idefics_cli.core.errors import UsageError
from idefics_cli.core.units import counted

if TYPE_CHECKING:
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

    path, total = output.path, len(job.pictures)
    if path is not None and is_dataset(path):
        check_dataset(path, (picture.key for picture in job.pictures), job.answer_columns)
    folder = path if path is not None and output.sink.output == "folder" else None
    if path is not None and folder is None:
        folder = path.parent
    own, others = split_off(job.pictures, chosen.shard, folder or Path())
    job = replace(job, pictures=own, others=others)
    where = f" ({chosen.source})" if chosen.source else ""
    invocation.console.note(
        f"shard {chosen.shard}{where}: {len(job.pictures)} of {counted(total, 'picture')}"
    )
    return job, output.of_shard(chosen.shard)
