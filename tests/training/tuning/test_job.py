"""The choices that a user leaves open, by the size of the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from idefics_cli.training.tuning.job import TuneChoices, make_job
from tests.support.training import load_tiny, make_examples


@pytest.mark.parametrize(
    ("parameters", "full", "rate", "batch", "steps"),
    [
        (3_000_000, False, 3e-3, 8, 300),
        (3_000_000, True, 1e-3, 8, 600),
        (500_000_000, False, 2e-4, 10, 3),
        (8_000_000_000, False, 1e-4, 10, 3),
        (8_000_000_000, True, 1e-5, 10, 3),
    ],
)
def test_defaults_follow_the_size_of_the_model(
    parameters: int, full: bool, rate: float, batch: int, steps: int, tmp_path: Path
) -> None:
    examples = make_examples(load_tiny(tmp_path, "idefics2").family, 10)
    job = make_job(TuneChoices(full=full), examples, [], parameters=parameters)
    assert (job.choices.learning_rate, job.choices.batch_size, job.steps) == (rate, batch, steps)
    assert job.choices.alpha == 32.0
    assert job.choices.checkpointing == (parameters > 100_000_000)


def test_what_the_user_chose_stays(tmp_path: Path) -> None:
    examples = make_examples(load_tiny(tmp_path, "idefics2").family, 10)
    chosen = TuneChoices(
        rank=4,
        alpha=5.0,
        learning_rate=0.5,
        epochs=1.5,
        batch_size=4,
        checkpointing=True,
        replay=0.5,
    )
    job = make_job(chosen, examples, [], parameters=10)
    assert job.choices == chosen
    assert (job.steps_of_epoch, job.steps) == (3, 4)


def test_the_digest_changes_with_every_part_of_the_data(tmp_path: Path) -> None:
    examples = make_examples(load_tiny(tmp_path, "idefics2").family, 4)
    digests = {
        make_job(TuneChoices(), train, validation, parameters=10).data_digest
        for train, validation in (
            (examples, []),
            (examples[:3], examples[3:]),
            (examples[:3], []),
            (examples[::-1], []),
        )
    }
    assert len(digests) == 4
