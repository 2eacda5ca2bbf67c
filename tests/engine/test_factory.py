"""Libraries that cannot be imported: an error of ours, not a traceback."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder

import pytest

from idefics_cli.core.errors import IdeficsError, MemoryLimitError
from idefics_cli.core.types import LoadSpec
from idefics_cli.engine.factory import engine_factory

_ENGINE = "idefics_cli.engine.local.engine"


class Refusing(MetaPathFinder):
    """Refuses to import our engine for a reason."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname == _ENGINE:
            raise self.error


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Refusing:
    finder = Refusing(ImportError())
    monkeypatch.delitem(sys.modules, _ENGINE, raising=False)
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    return finder


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ImportError("x.so: failed to map segment from shared object"), MemoryLimitError, "memory"),
        (OSError(12, "Cannot allocate memory"), MemoryLimitError, "memory"),
        (MemoryError(), MemoryLimitError, "memory"),
        (ImportError("no module named x\nmore"), IdeficsError, "imported: no module named x$"),
    ],
    ids=str,
)
def test_libraries_that_cannot_be_imported_are_an_error_of_ours(
    error: Exception, kind: type[IdeficsError], message: str, refusing: Refusing
) -> None:
    refusing.error = error
    with pytest.raises(kind, match=message) as caught:
        engine_factory(LoadSpec(repo="demo", family="idefics2"))()
    assert type(caught.value) is kind
    assert caught.value.hint
