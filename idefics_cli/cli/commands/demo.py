"""`idefics demo`: sample pictures for the built-in model, with captions and answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from idefics_cli.cli import options
from idefics_cli.cli.invocation import begin_command
from idefics_cli.core.errors import UsageError
from idefics_cli.ui.terminal.console import Console

if TYPE_CHECKING:
    from idefics_cli.demo.samples import Sample


# The command shows only the questions of these tasks, so that its output fits on a small screen.
# More names than this would push the questions off a terminal.
_MOST_LINES = 16
_EXAMPLES = ("caption", "count", "color", "position", "text")


def demo(
    context: typer.Context,
    folder: Annotated[
        str,
        typer.Argument(metavar="DIR", help="Folder for the pictures; made if missing."),
    ],
    count: options.Count = None,
    seed: options.Seed = None,
    json: options.Json = None,
    verbose: options.Verbose = None,
    quiet: options.Quiet = None,
) -> None:
    """Write sample pictures for the built-in model.

    `metadata.jsonl` beside them holds captions, and questions with answers. Then try

    `idefics caption -m demo DIR`
    """
    invocation = begin_command(context)
    from idefics_cli.demo.samples import write_samples

    settings, console = invocation.settings, invocation.console
    # An empty name comes from an unset variable in a script. `Path("")` is the current folder,
    # which must not be filled by such a mistake.
    if not folder:
        raise UsageError("the name of the folder is empty", hint="`.` is the current folder")
    path = Path(folder)
    samples = write_samples(path, count=settings.count, seed=settings.seed or 0)
    if settings.json:
        console.json(_record(path, samples))
    elif console.is_terminal and len(samples) > _MOST_LINES:
        first, last = samples[0].file_name, samples[-1].file_name
        console.line(f"{len(samples)} pictures in `{path}`: `{first}` to `{last}`")
    else:
        for sample in samples:
            console.line(str(path / sample.file_name))
    _show_questions(console)


def _record(folder: Path, samples: list[Sample]) -> dict[str, object]:
    from idefics_cli.demo.samples import METADATA
    from idefics_cli.demo.wordings import KNOWN_QUESTIONS

    return {
        "folder": str(folder),
        "metadata": str(folder / METADATA),
        "pictures": [
            {"file_name": sample.file_name, "caption": sample.caption} for sample in samples
        ],
        "known_questions": {task: list(texts) for task, texts in KNOWN_QUESTIONS.items()},
    }


def _show_questions(console: Console) -> None:
    from idefics_cli.demo.wordings import KNOWN_QUESTIONS

    console.tell("Ask the built-in model (`-m demo`) about what a scene really holds:")
    for task in _EXAMPLES:
        console.tell(f"  {KNOWN_QUESTIONS[task][0]}")
    console.tell("Its answers to other questions are wrong. `--json` lists all it knows.")
