"""The number of a task, from the variables that schedulers of jobs set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

from idefics_cli.caption.shards.shard import Shard
from idefics_cli.core.errors import UsageError
from idefics_cli.core.units import counted

AUTO = "auto"
"""What stands in place of the number of a shard if a scheduler says it."""


@dataclass(frozen=True, slots=True)
class ChosenShard:
    """A shard, and what named it.

    Attributes:
        shard: The shard.
        source: Names of the variables that named it; empty if the user did.
    """

    shard: Shard
    source: str = ""


@dataclass(frozen=True, slots=True)
class _Task:
    """A task of a scheduler; *count* is None if the scheduler does not say how many there are."""

    name: str
    index: int
    count: int | None
    source: str


def choose_shard(text: str, environ: Mapping[str, str]) -> ChosenShard:
    """Return the shard that *text* names: `3/16`, `auto`, or `auto/16`.

    With `auto`, the scheduler says both numbers; with `auto/16`, only that of the task.

    Args:
        text: The value of `--shard`.
        environ: The variables of the environment.

    Raises:
        UsageError: If there is no such shard, or no scheduler has set its variables.
    """
    first, _, last = text.partition("/")
    count = int(last[:99]) if last else None
    if first != AUTO:
        return ChosenShard(Shard(int(first[:99]), count or 0))
    task = _only_task(environ, text)
    if count is not None:
        return ChosenShard(Shard(task.index, count), task.source)
    if task.count is None:
        raise UsageError(
            f"`--shard auto`: {task.name} does not say how many tasks there are",
            hint="`--shard auto/16` is for 16 tasks",
        )
    return ChosenShard(Shard(task.index, task.count), task.source)


def _only_task(environ: Mapping[str, str], text: str) -> _Task:
    tasks = [task for read in _SCHEDULERS for task in read(environ, text)]
    # SkyPilot and torchrun set their variables even for a job of a single task, so such a task is
    # ignored if there is another.
    several = [task for task in tasks if task.count != 1] or tasks
    if not several:
        raise UsageError(
            f"`--shard {text}`: no variable of a scheduler is set",
            hint="it reads SLURM arrays, AWS Batch, indexed Kubernetes jobs, SkyPilot and torchrun;"
            " `--shard 3/16` names the shard itself",
        )
    if len(several) > 1:
        names = " and ".join(task.source for task in several)
        raise UsageError(
            f"`--shard {text}`: {names} are set, and say different things",
            hint="`--shard i/n` names the shard itself",
        )
    return several[0]


_SLURM = "a SLURM array"


def _slurm(environ: Mapping[str, str], text: str) -> Iterator[_Task]:
    if "SLURM_ARRAY_TASK_ID" not in environ:
        return
    number = _number(environ, "SLURM_ARRAY_TASK_ID")
    first = _number(environ, "SLURM_ARRAY_TASK_MIN", number)
    last = _number(environ, "SLURM_ARRAY_TASK_MAX", number)
    step = max(1, _number(environ, "SLURM_ARRAY_TASK_STEP", 1))
    count = (last - first) // step + 1
    # With `auto/16`, the number of a task is that of its shard: if the user repeats some failed
    # tasks, the array has fewer tasks than there are shards, but they keep their numbers.
    index = number
    if text == AUTO:
        index = (number - first) // step
        told = _number(environ, "SLURM_ARRAY_TASK_COUNT", count)
        tasks = counted(told, "task")
        # With `--array=3,7`, a user repeats two tasks of a larger array. Their pictures must not be
        # divided anew, into two shards.
        if first > 1 or count == 1 or told != count:
            raise UsageError(
                f"`--shard auto`: {_SLURM} of {tasks}, {first} to {last}, does not say how "
                "many shards there are",
                hint="`--shard auto/16` is for 16 tasks that count from 0",
            )
    yield _Task(_SLURM, index, count, "SLURM_ARRAY_TASK_ID")


def _pair(name: str, index: str, count: str | None) -> Callable[..., Iterator[_Task]]:
    def read(environ: Mapping[str, str], text: str) -> Iterator[_Task]:
        if index in environ and (count is None or count in environ):
            size = None if count is None else _number(environ, count)
            yield _Task(name, _number(environ, index), size, index)

    return read


_SCHEDULERS = (
    _slurm,
    _pair("AWS Batch", "AWS_BATCH_JOB_ARRAY_INDEX", "AWS_BATCH_JOB_ARRAY_SIZE"),
    _pair("a Kubernetes job", "JOB_COMPLETION_INDEX", None),
    _pair("SkyPilot", "SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES"),
    _pair("torchrun", "RANK", "WORLD_SIZE"),
)


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name, "")
    if not text and default is not None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        _refuse(name, text)
    return int(text)


def _refuse(name: str, text: str) -> NoReturn:
    raise UsageError(
        f"`--shard auto`: the variable {name} is `{text[:60]}`, which is not a number",
        hint="`--shard i/n` names the shard itself",
    )
