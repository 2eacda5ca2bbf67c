"""What a run of `idefics tune` needs: the model, the job and the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING

from idefics_cli.cli.commands.tune.answers import answer_greedily
from idefics_cli.cli.commands.tune.data import TuneData
from idefics_cli.cli.invocation import Invocation
from idefics_cli.core.types import DtypeName, GenerationRequest, LoadSpec
from idefics_cli.training.tuning.job import TuneJob
from idefics_cli.training.tuning.output import OutputFolder

if TYPE_CHECKING:
    from idefics_cli.models.loading.loader import Loaded
    from idefics_cli.models.planning.plan import Plan
    from idefics_cli.training.tuning.events import TuneEvent
    from idefics_cli.training.tuning.run import Answer, TuneRun


@dataclass(frozen=True, slots=True)
class TuneWork:
    """All that a run needs.

    Attributes:
        invocation: The call, with its settings.
        plan: How the model runs here.
        spec: How it is loaded for training.
        computed: Dtype of the computation.
        job: What is trained.
        name: The data as the user named it.
        data: The examples.
    """

    invocation: Invocation
    plan: Plan
    spec: LoadSpec
    computed: DtypeName
    job: TuneJob
    name: str
    data: TuneData


def load_model(work: TuneWork) -> Loaded:
    """Load the model for training, with a status on the terminal."""
    from idefics_cli.models.loading.training import load_for_training

    spec = work.spec
    if spec.threads is not None:
        import torch

        torch.set_num_threads(spec.threads)
    with work.invocation.console.status(f"loading {spec.name or spec.repo}") as progress:
        return load_for_training(spec, report=progress)


def make_answer(work: TuneWork, loaded: Loaded) -> Answer:
    """Return what answers requests with *loaded*, as its weights are at that time."""
    return lambda requests, most: answer_greedily(loaded, work.spec, requests, most)


def make_run(
    work: TuneWork,
    loaded: Loaded,
    output: OutputFolder,
    *,
    stop: Event,
    on_event: Callable[[TuneEvent], None],
    others: Sequence[GenerationRequest] = (),
) -> TuneRun:
    """Return the run of *loaded*, which answers through the engine."""
    from idefics_cli.training.tuning.run import TuneRun

    return TuneRun(
        loaded,
        work.job,
        output,
        answer=make_answer(work, loaded),
        preprocess=work.data.pictures.preprocess,
        computed=work.computed,
        clock=work.invocation.services.clock,
        stop=stop,
        on_event=on_event,
        others=others,
    )
