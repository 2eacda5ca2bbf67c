"""The processor of the built-in model, and rendered pictures, made once for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from idefics_cli.demo.training.dataset import render_split
from idefics_cli.demo.training.evaluate import WEIGHTS
from idefics_cli.models.families.protocols import Processor
from tests.support.reference import auto_processor


@pytest.fixture(scope="session")
def processor() -> Processor:
    processor: Processor = auto_processor(WEIGHTS, "idefics2")
    return processor


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with 40 held-out pictures and 200 to train on."""
    folder = tmp_path_factory.mktemp("pictures")
    render_split(folder, "combo", 40)
    render_split(folder, "train", 200)
    return folder
