"""The stacks of the threads in which kernels compute."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, MutableMapping

from idefics_cli.core.errors import UsageError

# The attention among patches keeps 160 KiB of scores on the stack; with `OMP_STACKSIZE=128k`, it
# ends the process by a segmentation fault.
_LEAST_BYTES = 2**20
_LEAST = "1M"
# The variables of libgomp and of LLVM's OpenMP, and the bytes of a number without a unit.
_VARIABLES = {"OMP_STACKSIZE": 1024, "GOMP_STACKSIZE": 1024, "KMP_STACKSIZE": 1}
_SIZE = re.compile(r"([0-9]{1,15}) *([BKMG]?)", re.ASCII | re.IGNORECASE)
_UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def check_stack_limit() -> None:
    """Check the limit of `ulimit -s`, which new threads without a size of their own get, too.

    Raises:
        UsageError: If the limit is less than kernels need.
    """
    if sys.platform == "win32":
        return  # no such limit
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_STACK)
    if 0 <= limit < _LEAST_BYTES:
        raise UsageError(
            f"the limit of the stack is {limit // 2**10} KiB, which is too small for kernels",
            hint="`ulimit -s 8192` raises it; where the shell refuses that, start a new one",
        )


def enlarge_stacks(environ: MutableMapping[str, str]) -> Iterator[str]:
    """Raise the size of stacks in *environ* to what kernels need; yield a line for each change.

    OpenMP reads the variables when torch is imported. It reports values that it cannot read.
    """
    for name, usual in _VARIABLES.items():
        given = environ.get(name, "").strip()
        match = _SIZE.fullmatch(given)
        if match is None or int(match[1]) * _UNITS.get(match[2].upper(), usual) >= _LEAST_BYTES:
            continue
        environ[name] = _LEAST
        yield f"{name} is `{given}`, which is too small for kernels; `{_LEAST}` takes its place"
