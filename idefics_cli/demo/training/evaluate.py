"""Evaluation of the built-in model: `python -m idefics_cli.demo.training.evaluate [FOLDER]`.

The model in the folder answers questions about scenes that training never showed, with greedy
`generate`. An answer is right if it matches exactly.

Without options there are three exams: combinations that training left out, pairs of colour and
shape that training left out, and gray pictures, which show what the model can guess.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers.utils import logging

from idefics_cli.core.errors import (
    EXIT_DONE,
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    IdeficsError,
    ModelError,
    UsageError,
)
from idefics_cli.demo.training.exam import Exam, ExaminedModel, Marks, take_exam
from idefics_cli.demo.training.messages import print_error, print_line
from idefics_cli.hardware.system import count_cores
from idefics_cli.training.precision import is_bfloat16_native, pick_device

WEIGHTS = Path(__file__).parents[1] / "weights"
ALL = "all"
_DEFAULT_SCENES = {"combo": 640, "pair": 300, "blind": 200}
_SHOWN_MISTAKES = 10


@dataclass(frozen=True, slots=True)
class Result:
    """An exam, its marks, and how long it took."""

    exam: Exam
    marks: Marks
    seconds: float

    @property
    def title(self) -> str:
        """The heading of the column for the exam in the table."""
        name = "held-out combinations" if self.exam.split == "combo" else "never-seen pairs"
        if self.exam.is_blind:
            name = "blind (gray pictures)"
        return name if self.exam.quantization == "none" else f"{name}, {self.exam.quantization}"


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs exams.

    Attributes:
        folder: Folder of the model.
        device: "cpu", "cuda" or "mps".
        dtype: "bfloat16" or "float32".
        processes: Number of processes, with one thread each.
    """

    folder: Path
    device: str
    dtype: str
    processes: int

    def run(self, exam: Exam) -> Result:
        """Run *exam* in all processes together."""
        started = time.monotonic()
        marks = Marks()
        jobs = [(self, exam, part) for part in range(self.processes)]
        if self.processes == 1:
            marks.add(_take_part(*jobs[0]))
        else:
            with multiprocessing.get_context("spawn").Pool(self.processes) as pool:
                for part in pool.starmap(_take_part, jobs, chunksize=1):
                    marks.add(part)
        totals = [count for row, count in marks.rows.items() if ":" not in row]
        marks.rows[ALL] = [sum(column) for column in zip(*totals, strict=True)]
        return Result(exam, marks, time.monotonic() - started)


def failures(result: Result) -> Iterator[str]:
    """Yield a text for each mark of *result* that the built-in model must reach and has not."""
    marks = result.marks
    share = marks.percent(ALL)
    if result.exam.is_blind:
        if share >= 25:
            yield f"blind: {share:.1f} % is not under 25: pictures are not needed"
        return
    if result.exam.split == "pair":
        if share < 94:
            yield f"never-seen pairs: {share:.1f} % is under 94"
        return
    for row, least in ((ALL, 98), ("caption", 98)):
        if marks.percent(row) < least:
            yield f"{row}: {marks.percent(row):.1f} % is under {least}"
    for row in marks.rows:
        if ":" not in row and marks.percent(row) < 95:
            yield f"{row}: {marks.percent(row):.1f} % is under 95"


def table(results: Sequence[Result], *, is_markdown: bool) -> str:
    """Return a table; each cell has the percentage of right answers and the number of questions."""
    names = sorted({row for result in results for row in result.marks.rows if row != ALL})
    rows = [["task", *(result.title for result in results)]]
    for name in (ALL, *names):
        cells = [_cell(result.marks, name) for result in results]
        rows.append([name.replace("_", " "), *cells])
    if is_markdown:
        rows.insert(1, ["---", *["---:"] * len(results)])
        return "".join(f"| {' | '.join(row)} |\n" for row in rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code: 1 if the model is not good enough."""
    try:
        return _evaluate(_parse(arguments))
    except IdeficsError as error:
        print_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _evaluate(given: argparse.Namespace) -> int:
    runner = _runner(given)
    results = []
    for exam in _exams(given):
        result = runner.run(exam)
        right, asked = result.marks.rows[ALL]
        print_line(f"{result.title}: {right} of {asked} in {result.seconds:.0f} s, {runner.dtype}")
        if not exam.is_blind:
            for mistake in result.marks.mistakes[:_SHOWN_MISTAKES]:
                question = mistake.question
                said = f"{mistake.answer!r}, not {question.answer!r}"
                print_line(f"  scene {mistake.scene}: {question.question!r} -> {said}")
        results.append(result)
    missing = [line for result in results for line in failures(result)]
    if given.json:
        described = {"exams": [_described(result) for result in results], "failures": missing}
        sys.stdout.write(json.dumps(described) + "\n")
    else:
        sys.stdout.write(table(results, is_markdown=given.markdown))
    for line in missing:
        print_line(f"not good enough: {line}")
    return EXIT_FAILURE if missing else EXIT_DONE


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m idefics_cli.demo.training.evaluate",
        description="Exact match of the built-in model, or of FOLDER, on unseen scenes.",
    )
    add = parser.add_argument
    add("folder", type=Path, nargs="?", default=WEIGHTS, metavar="FOLDER")
    add("--scenes", type=int, help="of each exam (default: 640, 300 pairs, 200 blind)")
    add("--split", choices=("combo", "pair"), help="only this exam")
    add("--blind", action="store_true", help="only this exam: gray pictures")
    add("--quantization", choices=("none", "4bit"), default="none")
    add("--processes", type=int, help="of one thread each (default: up to 4; 1 on a GPU)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="marks and mistakes as JSON")
    form.add_argument("--markdown", action="store_true", help="the table in Markdown")
    return parser.parse_args(arguments)


def _runner(given: argparse.Namespace) -> Runner:
    folder: Path = given.folder
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"`{folder}` holds no model: there is no config.json in it",
            hint="give a folder that `python -m idefics_cli.demo.training.train` made",
        )
    if given.scenes is not None and given.scenes < 4:
        raise UsageError(f"{given.scenes} scenes are too few", hint="give `--scenes` 4 or more")
    device = pick_device(given.device)
    processes = given.processes
    if processes is None:
        processes = min(4, count_cores()) if device == "cpu" else 1
    if processes < 1:
        raise UsageError("`--processes` must be at least 1", hint="leave `--processes` out")
    dtype = "bfloat16" if is_bfloat16_native(device) else "float32"
    return Runner(folder, device, dtype, processes)


def _exams(given: argparse.Namespace) -> list[Exam]:
    def exam(name: str, *, split: str, is_blind: bool) -> Exam:
        scenes = given.scenes or _DEFAULT_SCENES[name]
        return Exam(scenes, "pair" if split == "pair" else "combo", is_blind, given.quantization)

    if given.split or given.blind:
        split = given.split or "combo"
        return [exam("blind" if given.blind else split, split=split, is_blind=given.blind)]
    return [
        exam("combo", split="combo", is_blind=False),
        exam("pair", split="pair", is_blind=False),
        exam("blind", split="combo", is_blind=True),
    ]


def _take_part(runner: Runner, exam: Exam, part: int) -> Marks:
    logging.disable_progress_bar()
    if runner.device == "cpu":
        torch.set_num_threads(1)
    candidate = ExaminedModel(
        runner.folder,
        device=runner.device,
        dtype=getattr(torch, runner.dtype),
        quantization=exam.quantization,
    )
    return take_exam(exam, candidate, part=part, parts=runner.processes)


def _cell(marks: Marks, row: str) -> str:
    if row not in marks.rows:
        return "-"
    return f"{marks.percent(row):.1f} ({marks.rows[row][1]:,})"


def _described(result: Result) -> dict[str, object]:
    rows = {row: {"right": r, "asked": n} for row, (r, n) in sorted(result.marks.rows.items())}
    mistakes = [asdict(mistake) for mistake in result.marks.mistakes]
    seconds = round(result.seconds, 1)
    return {**asdict(result.exam), "seconds": seconds, "marks": rows, "mistakes": mistakes}


if __name__ == "__main__":
    sys.exit(main())
