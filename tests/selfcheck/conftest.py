"""Pictures and the built-in model for the self-check."""

from __future__ import annotations

from dataclasses import replace

import pytest

from idefics_cli.demo.samples import write_samples
from idefics_cli.models.hub.facts import find_facts
from idefics_cli.selfcheck.asking import KnownPicture
from idefics_cli.selfcheck.run import Examination
from tests.support.kernels import HERE
from tests.support.machines import cpu


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[KnownPicture]:
    """Three pictures with a caption and two questions each."""
    folder = tmp_path_factory.mktemp("known")
    return [
        KnownPicture(
            folder / sample.file_name,
            (
                ("Describe this image.", sample.caption),
                *((q.question, q.answer) for q in sample.questions[:2]),
            ),
        )
        for sample in write_samples(folder, count=3, seed=7)
    ]


@pytest.fixture
def examination(pictures: list[KnownPicture]) -> Examination:
    """A check of the processor of this computer, with plenty of memory."""
    machine = replace(
        cpu(24),
        cpu_flags=HERE.cpu_flags,
        torch_cpu_capability=HERE.torch_cpu_capability,
        platform=HERE.platform,
        versions=HERE.versions,
        cores=2,
    )
    return Examination(find_facts("demo"), machine, pictures, device="cpu")
