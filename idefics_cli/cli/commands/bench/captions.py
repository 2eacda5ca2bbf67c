"""The captioning run and the drawn scenes, as a benchmark needs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from idefics_cli.caption.executors.local import LocalExecutor  # noqa: F401  # run_captions does

# These imports are at the top, so that they do not count as time of the run. They slow down no
# other command, because only a running benchmark imports this module.
from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.job import CaptionJob, CaptionQuestion
from idefics_cli.caption.runner import run_captions
from idefics_cli.core.types import Attachment, CaptionRecord, Sampling
from idefics_cli.engine.protocol import Engine

if TYPE_CHECKING:
    from idefics_cli.bench.stage import CaptionTask


def caption_all(engine: Engine, task: CaptionTask) -> Mapping[Path, str]:
    """Caption the pictures of *task* as `idefics caption` does; see `stage.CaptionRun`."""
    keys = {str(path): path for path in task.pictures}
    job = CaptionJob(
        pictures=tuple(CaptionItem(key, Attachment(key)) for key in keys),
        questions=(CaptionQuestion(task.prompt),),
        mode="chat" if engine.spec.chats else "complete",
        sampling=Sampling(max_new_tokens=task.max_new_tokens),
        batch_size=task.batch_size,
        # A captioning run usually asks again after a repetitive reply, which random weights often
        # give. This run does not ask again, because plain transformers does not either.
        asks_again=False,
    )
    captions: dict[Path, str] = {}

    def collect_caption(record: CaptionRecord) -> None:
        if record.caption is not None:
            captions[keys[record.file_name]] = record.caption

    run_captions(job, lambda *, progress=None: engine, collect_caption)
    return captions


def draw_scenes(folder: Path, count: int) -> Sequence[Path]:
    """Write *count* sample pictures of the built-in model into *folder*."""
    from idefics_cli.demo.samples import write_samples

    samples = write_samples(folder, count=count, seed=0)
    return [folder / sample.file_name for sample in samples]
