"""Stacks that are too small for kernels."""

from __future__ import annotations

import subprocess
import sys
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


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no `ulimit`")
@pytest.mark.parametrize(("kibibytes", "is_enough"), [(256, False), (1023, False), (1024, True)])
def test_a_small_limit_of_the_stack_is_refused(kibibytes: int, is_enough: bool) -> None:
    ran = subprocess.run(
        ["sh", "-c", f'ulimit -s {kibibytes} && exec "$0" -m idefics_cli config', sys.executable],
        capture_output=True,
        text=True,
        check=False,
    )
    if is_enough:
        assert (ran.returncode, ran.stderr) == (0, "")
        return
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == (
        f"error: the limit of the stack is {kibibytes} KiB, which is too small for kernels\n"
        "hint: `ulimit -s 8192` raises it; where the shell refuses that, start a new one\n"
    )
