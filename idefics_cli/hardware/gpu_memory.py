"""The free memory of NVIDIA GPUs as the driver reports it.

torch asks CUDA, which makes a context on the GPU for that: 0.3 to 0.5 GB of its memory until the
process ends, and some 0.3 s. The driver needs none.
"""

from __future__ import annotations

from idefics_cli.core.units import MIB
from idefics_cli.hardware.system import output_of

_COMMAND = (
    "nvidia-smi",
    "--query-gpu=uuid,compute_mode,memory.free",
    "--format=csv,noheader,nounits",
)


def read_free_memory() -> dict[str, int]:
    """Return the free bytes of each GPU by its UUID, as "GPU-...".

    GPUs that only one process may use are left out, because a context is what shows whether this
    process may. The result is empty without `nvidia-smi`.
    """
    found = {}
    for line in output_of(_COMMAND).splitlines():
        uuid, mode, free = ([part.strip() for part in line.split(",")] + ["", ""])[:3]
        if mode == "Default" and free.isdecimal():
            found[uuid] = int(free) * MIB
    return found
