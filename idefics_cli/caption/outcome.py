"""The outcome of a captioning run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from idefics_cli.caption.resume.todo import Todo

RunEnd = Literal["done", "interrupted", "failures", "stopped"]
"""How a run ends.

"interrupted" means that Ctrl-C or SIGTERM came once, and the run finished its current batch.
"stopped" means that it came a second time. "failures" means that more pictures failed than the run
allows.
"""


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """The outcome of one call of a run.

    Attributes:
        captioned: Number of pictures that this call captioned.
        failed: Number of pictures that failed in this call.
        end: How the run ended.
        todo: What was left to do, and what earlier calls had done.
        is_resumable: Whether the same call continues the run.
        failures: File that lists the pictures that failed; None if there is none.
        reported: Number of pictures on the report page; None if the page was not written.
    """

    captioned: int = 0
    failed: int = 0
    end: RunEnd = "done"
    todo: Todo = field(default_factory=lambda: Todo(()))
    is_resumable: bool = False
    failures: Path | None = None
    reported: int | None = None
