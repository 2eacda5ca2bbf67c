"""Captioning jobs whose pictures exist only for a fake engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from idefics_cli.caption.executors import LocalExecutor, MakeExecutor
from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.job import CaptionJob, CaptionQuestion
from idefics_cli.caption.runner import OnEvent, run_captions
from idefics_cli.core.types import Attachment, CaptionRecord, GenerationRequest, Sampling
from idefics_cli.engine.protocol import Engine
from tests.support.fakes import EngineOf

NAMES = tuple(f"{number:02}.jpg" for number in range(25))
SIZES = {name: [(640, 480), (480, 640), (800, 200)][i * i % 3] for i, name in enumerate(NAMES)}


class RecordList:
    """Keeps the records that are written."""

    def __init__(self) -> None:
        self.records: list[CaptionRecord] = []

    def write(self, record: CaptionRecord) -> None:
        """Keep *record*."""
        self.records.append(record)


def describe(request: GenerationRequest) -> str:
    """Answer with the name of the picture."""
    return f"a picture of {request.attachments[0].source}"


def describe_key(key: str) -> str:
    """Return the caption of the picture *key*."""
    return f"a picture of {key}"


def photo_job(
    names: Sequence[str] = NAMES, *, batch_size: int = 4, sampling: Sampling | None = None
) -> CaptionJob:
    """Return a job that waits for full batches, also on a busy machine."""
    return CaptionJob(
        pictures=tuple(CaptionItem(name, Attachment(name)) for name in names),
        questions=(CaptionQuestion("Describe this image."),),
        sampling=sampling or Sampling(),
        batch_size=batch_size,
        readers=3,
        patience_seconds=60,
    )


def run_job(
    job: CaptionJob,
    engine: Engine,
    make_executor: MakeExecutor = LocalExecutor,
    *,
    on_event: OnEvent = lambda event: None,
) -> list[CaptionRecord]:
    """Return the records of a run with *engine*."""
    sink = RecordList()
    run_captions(job, EngineOf(engine), sink.write, make_executor=make_executor, on_event=on_event)
    return sink.records


def texts(records: Iterable[CaptionRecord]) -> list[tuple[str, str | None]]:
    """Return the names and captions of *records*."""
    return [(record.file_name, record.caption) for record in records]


# The names and captions of a job with all pictures.
EXPECTED = [(name, f"a picture of {name}") for name in NAMES]
