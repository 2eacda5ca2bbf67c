"""What tests of quantized models share."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from idefics_cli.models.loading import quantized_store


@pytest.fixture
def quiet_bitsandbytes() -> Iterator[None]:
    """Ignore what bitsandbytes says about its CPU kernels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def needed_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the room that each save of weights asks for."""
    needed: list[int] = []
    save_weights = quantized_store.save_weights

    def watched(*arguments: Any, needed_bytes: int) -> None:
        needed.append(needed_bytes)
        save_weights(*arguments, needed_bytes=needed_bytes)

    monkeypatch.setattr(quantized_store, "save_weights", watched)
    return needed
