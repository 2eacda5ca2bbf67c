"""Stacks that are too small for kernels."""

from __future__ import annotations

from pathlib import Path

import pytest

from idefics_cli.cli.services import Services
from tests.support.commands import run


@pytest.mark.parametrize(
    ("name", "given", "is_enlarged"),
    [
        *(("OMP_STACKSIZE", size, True) for size in ("64k", "160", " 1023 K ", "900000b")),
        *(("OMP_STACKSIZE", size, False) for size in ("1024", "1m", "8 M", "1G", "", "much", "-1")),
        ("GOMP_STACKSIZE", "64", True),
        ("KMP_STACKSIZE", "65536", True),
        ("KMP_STACKSIZE", "4194304", False),
    ],
)
def test_small_stacks_of_threads_are_enlarged_before_torch_is_imported(
    name: str, given: str, is_enlarged: bool
) -> None:
    environ = {"HOME": str(Path.home()), name: given}
    ran = run("config", services=Services(environ=environ))
    assert ran.code == 0
    if not is_enlarged:
        assert (environ[name], ran.err) == (given, "")
        return
    assert environ[name] == "1M"
    told = f"{name} is `{given.strip()}`, which is too small for kernels; `1M` takes its place"
    assert ran.err == f"warning: {told}\n"
