"""Training of the built-in model: `python -m idefics_cli.demo.training.train --out FOLDER`.

The program draws the pictures, and trains the tokenizer and the weights. From time to time it asks
questions about pictures that training does not use, which is called a watch, and saves a model that
`idefics -m FOLDER` loads.

Several processes compute gradients, each on one core. They share weights and gradients in memory,
and each process updates a part of the weights.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch.multiprocessing.spawn import spawn
from transformers.utils import logging

from idefics_cli.core.errors import (
    EXIT_DONE,
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    IdeficsError,
    PlanError,
    UsageError,
)
from idefics_cli.core.units import format_size
from idefics_cli.demo.training.course import Course
from idefics_cli.demo.training.dataset import render_split
from idefics_cli.demo.training.messages import print_error, print_line
from idefics_cli.demo.training.watch import WATCHED
from idefics_cli.demo.training.worker import LOG, Fresh, Options, Shared, Worker, work
from idefics_cli.hardware.system import count_cores
from idefics_cli.training.optimizer import Buffers
from idefics_cli.training.precision import is_bfloat16_native, pick_device

_PICTURE_BYTES = 39_000


def train(options: Options) -> None:
    """Draw the pictures, train, and leave the finished model in the folder `options.out`.

    Raises:
        UsageError: If the folder holds files that training has not written.
    """
    _claim(options.out)
    with _picture_folder(options) as data:
        _check_space(data, options.pictures)
        started = time.monotonic()
        render_split(data, "combo", options.final_pictures, processes=options.processes)
        render_split(data, "train", options.pictures, processes=options.processes)
        print_line(f"{options.pictures} pictures in {time.monotonic() - started:.0f} s")
        _run(replace(options, data=data))


@contextmanager
def _picture_folder(options: Options) -> Iterator[Path]:
    if options.data is not None:
        yield options.data
        return
    # The temporary folder of the system is not used, because it is often in memory.
    with tempfile.TemporaryDirectory(prefix="pictures-", dir=options.out) as name:
        yield Path(name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    try:
        train(_parse(arguments))
    except IdeficsError as error:
        print_error(error)
        return error.exit_code
    except OSError as error:
        print_line(f"error: cannot write the model or its pictures: {error}")
        return EXIT_FAILURE
    except KeyboardInterrupt:
        print_line("interrupted; the folder holds the model of the last watch, if there was one")
        return EXIT_INTERRUPTED
    return EXIT_DONE


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(
        prog="python -m idefics_cli.demo.training.train",
        description="Make the built-in model again, from nothing.",
        epilog="The default suits 4 cores with native bfloat16. On a GPU, or on slower cores, "
        "give --steps 4500: the length of the original run.",
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FOLDER", help="where the model goes")
    add("--data", type=Path, metavar="FOLDER", help="keep the pictures (6 GB) and use them again")
    add("--minutes", type=float, default=37.0, help="length of the training (default: 37)")
    add("--steps", type=int, help="length in steps, instead of --minutes")
    add("--batch", type=int, help="conversations of an early step; later ones in proportion")
    add("--processes", type=int, help="one core each (default: up to 4; 1 on a GPU)")
    add("--pictures", type=int, default=150_000, help="to train on (default: 150000)")
    add("--watch-seconds", type=float, default=180.0, help="between checkpoints (default: 180)")
    add("--watch-pictures", type=int, default=160, help="held-out, per check (default: 160)")
    add("--seed", type=int, default=0)
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    add("--dtype", choices=("auto", "bfloat16", "float32"), default="auto")
    given = vars(parser.parse_args(arguments))
    device = pick_device(given["device"])
    if given["dtype"] == "auto":
        given["dtype"] = "bfloat16" if is_bfloat16_native(device) else "float32"
    if given["processes"] is None:
        given["processes"] = min(4, count_cores()) if device == "cpu" else 1
    course = Course().with_batch(given.pop("batch"))
    options = Options(**{**given, "device": device, "course": course})
    _check(options)
    return options


def _check(options: Options) -> None:
    if options.device != "cpu" and options.processes > 1:
        raise PlanError(
            f"{options.processes} processes cannot share one {options.device} device",
            hint="use `--processes 1`, or `--device cpu`",
        )
    for name in ("minutes", "processes", "watch_seconds", "watch_pictures"):
        if getattr(options, name) <= 0:
            flag = name.replace("_", "-")
            raise UsageError(f"`--{flag}` must be above 0", hint=f"leave `--{flag}` out")
    if options.steps is not None and options.steps < 1:
        raise UsageError("`--steps` must be at least 1", hint="the original run had 4477")
    if options.pictures < 100 * options.processes:
        raise UsageError(
            f"{options.pictures} pictures are too few to train on",
            hint="the original run had 150000; 2000 show that it works",
        )


def _claim(out: Path) -> None:
    """Make the folder *out*; raise an error if it has files that training has not written."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / LOG).exists())):
        raise UsageError(
            f"`{out}` exists and was not made by training", hint="choose an empty or a new folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    (out / LOG).write_text("")


def _check_space(data: Path, pictures: int) -> None:
    """Raise an error if the disk is too small for the pictures.

    Without this check, writing to the memory map of a file on a full disk kills the process.
    """
    data.mkdir(parents=True, exist_ok=True)
    here = sum(path.stat().st_size for path in data.glob("*.npy"))
    free = shutil.disk_usage(data).free + here
    needed = pictures * _PICTURE_BYTES
    if free < needed:
        raise IdeficsError(
            f"{pictures} pictures take {format_size(needed)}, and `{data}` has {format_size(free)}",
            hint="choose a folder on another disk with `--data`, or fewer `--pictures`",
        )


def _run(options: Options) -> None:
    """Allocate shared memory, and run one worker per process."""
    logging.disable_progress_bar()
    fresh = Fresh.build(options)
    count = sum(parameter.numel() for parameter in fresh.parameters().values())
    dtype = getattr(torch, options.dtype)
    processes = options.processes
    buffers = Buffers.allocate(count, processes=processes, dtype=dtype, device=options.device)
    control = torch.zeros(2, dtype=torch.float64)
    tallies = torch.zeros(processes, len(WATCHED), 2, dtype=torch.long)
    print_line(
        f"{count:,} parameters with heads, {options.dtype} on {processes} x {options.device}"
    )
    if processes == 1:
        shared = Shared(buffers, control, tallies, threading.Barrier(1))
        Worker(0, options, shared, fresh).run()
        return
    for tensor in (control, tallies):
        tensor.share_memory_()  # type: ignore[no-untyped-call]  # torch 2.13 has no annotation
    barrier = multiprocessing.get_context("spawn").Barrier(processes)
    shared = Shared(buffers, control, tallies, barrier)
    # Daemon processes end together with this process.
    spawn(work, (options, shared), nprocs=processes, daemon=True)  # type: ignore[no-untyped-call]  # as above


if __name__ == "__main__":
    sys.exit(main())
