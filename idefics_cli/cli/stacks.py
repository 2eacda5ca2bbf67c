"""The stacks of the threads of OpenMP, in which kernels compute."""

from __future__ import annotations

import re
from collections.abc import Iterator, MutableMapping

# The attention among patches keeps 160 KiB of scores on the stack; with `OMP_STACKSIZE=128k`, it
# ends the process by a segmentation fault.
_LEAST_BYTES = 2**20
_LEAST = "1M"
# The variables of libgomp and of LLVM's OpenMP, and the bytes of a number without a unit.
_VARIABLES = {"OMP_STACKSIZE": 1024, "GOMP_STACKSIZE": 1024, "KMP_STACKSIZE": 1}
_SIZE = re.compile(r"([0-9]{1,15}) *([BKMG]?)", re.ASCII | re.IGNORECASE)
_UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30}


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
