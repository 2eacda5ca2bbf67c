"""The built-in model, and one server for all tests of a module."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from idefics_cli.demo.samples import write_samples
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.server.service import ServerOptions
from tests.support.http_servers import DEMO_SPEC, HttpServer, StillOpen, serving
from tests.support.kernels import with_kernels


@pytest.fixture(scope="module")
def demo_engine() -> Iterator[LocalEngine]:
    """Return the built-in model, which really sees."""
    with LocalEngine(with_kernels(DEMO_SPEC)) as engine:
        yield engine


@pytest.fixture(scope="module")
def demo(demo_engine: LocalEngine) -> Iterator[HttpServer]:
    """Return a server of the built-in model."""
    options = ServerOptions(DEMO_SPEC, names=("demo", "idefics/demo"))
    with serving(StillOpen(demo_engine), options) as server:
        yield server


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return drawn scenes, as `data:` URIs."""
    folder: Path = tmp_path_factory.mktemp("scenes")
    samples = write_samples(folder, count=20, seed=4)
    files = [(folder / sample.file_name).read_bytes() for sample in samples]
    return ["data:image/png;base64," + base64.b64encode(file).decode() for file in files]
