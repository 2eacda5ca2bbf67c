"""Other questions than those of the data: what a model can do, and should not forget."""

from __future__ import annotations

from typing import TYPE_CHECKING

from idefics_cli.cli.commands.tune.work import TuneWork
from idefics_cli.core.types import GenerationRequest
from idefics_cli.models.hub.adapters import REPLAY
from idefics_cli.models.hub.registry import DEMO
from idefics_cli.training.tuning.output import OutputFolder

if TYPE_CHECKING:
    from idefics_cli.models.loading.loader import Loaded
    from idefics_cli.training.examples import TrainingExample
    from idefics_cli.training.tuning.replay import Ask, ReplayQuestion
    from idefics_cli.training.tuning.run import Answer

_MOST_ASKED = 32
_USUAL_ANSWER = "Yes."
# Questions about any picture, as the examples of the model documentation ask them.
_QUESTIONS = (
    "What is in this image?",
    "What can you see in the background?",
    "What is the main subject of this image?",
    "How many people are in this image?",
    "Is there an animal in this image?",
    "Is there text in this image?",
    "What colors do you see in this image?",
    "Where could this picture have been taken?",
    "Was this picture taken indoors or outdoors?",
    "What is the weather like in this image?",
    "What is unusual about this image?",
    "What happens in this image?",
    "What objects are on the left side of this image?",
    "Describe the mood of this image.",
    "Is this a photo or a drawing?",
    "What is in the foreground of this image?",
)


def asker_for(repo: str) -> Ask:
    """Return what draws questions that the model *repo* can answer."""
    if repo != DEMO:
        return lambda rng, answer: (rng.choice(_QUESTIONS), 1)
    from idefics_cli.demo.replayed import own_question

    return own_question


def replayed_rows(
    work: TuneWork, loaded: Loaded, output: OutputFolder, answer: Answer
) -> list[TrainingExample]:
    """Return rows with the model's own answers, which the folder of the run keeps."""
    from idefics_cli.training.tuning import replay

    train, chosen = work.job.train, _chosen(work)
    if not chosen:
        return []
    known = output.read(REPLAY)
    answers = None if known is None else replay.from_json(known, len(chosen))
    if answers is None:
        requests = [replay.request_of(question, train) for question in chosen]
        answers = replay.whole_answers(answer(requests, replay.ANSWER_TOKENS))
        output.write(REPLAY, replay.to_json(answers))
    return list(replay.replay_examples(chosen, answers, train, loaded.family))


def expected_rows(work: TuneWork, loaded: Loaded) -> list[TrainingExample]:
    """Return rows like those of `replayed_rows`, with a short answer, for an estimate."""
    from idefics_cli.training.tuning import replay

    chosen = _chosen(work)
    answers = [_USUAL_ANSWER] * len(chosen)
    return list(replay.replay_examples(chosen, answers, work.job.train, loaded.family))


def _chosen(work: TuneWork) -> list[ReplayQuestion]:
    from idefics_cli.training.tuning import replay

    choices, ask = work.job.choices, asker_for(work.spec.repo)
    return replay.choose_questions(
        work.job.train, ask, count=choices.replay or 0, seed=choices.seed
    )


def other_requests(work: TuneWork) -> list[GenerationRequest]:
    """Return questions that the model is asked before and after the run."""
    from idefics_cli.training.tuning import replay

    rows = work.job.validation[:_MOST_ASKED]
    chosen = replay.choose_questions(rows, asker_for(work.spec.repo), count=1, seed=-1)
    return [replay.request_of(question, rows) for question in chosen]
