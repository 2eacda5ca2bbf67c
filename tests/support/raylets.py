"""A Ray cluster on this machine, whose nodes are processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Self

_PROGRAM = """
import sys
from ray.cluster_utils import Cluster
small = {"object_store_memory": 80 * 2**20}
cluster = Cluster(
    initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small}
)
nodes = [cluster.add_node(num_cpus=1, **small) for _ in range(int(sys.argv[1]))]
print("address", cluster.address, flush=True)
for line in sys.stdin:
    if line == "kill\\n":
        cluster.remove_node(nodes.pop(0), allow_graceful=False)
    else:
        nodes.append(cluster.add_node(num_cpus=1, **small))
    print("done", flush=True)
cluster.shutdown()
"""


class Raylets:
    """A cluster of a head without a processor, and *count* nodes with one each."""

    def __init__(self, count: int, folder: Path) -> None:
        with (folder / "raylets.log").open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(count)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self.address = self._answer("address")

    def kill(self) -> None:
        """Kill the raylet of the oldest node."""
        self._ask("kill")

    def add(self) -> None:
        """Add a node."""
        self._ask("add")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate(timeout=60)

    def _ask(self, what: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        self._answer("done")

    def _answer(self, word: str) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(word):
                return line.removeprefix(word).strip()
        raise RuntimeError("the cluster has ended")
