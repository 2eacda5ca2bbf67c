"""The actor on a node of a Ray cluster.

Ray sends the source of this class to the node, so that the class works, and can say what is
missing, on a node that has another version of this program or none. For this reason, the module
imports nothing of the program before `run` or `begin` is called.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pickle
import platform
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from idefics_cli.caption.executors.node import NodeWorker

PACKAGES = ("torch", "transformers")


class RayActor:
    """Works on a node; several threads call its methods.

    Args:
        left_out: Folders that Ray adds to the path of imports, and that are left out. Ray adds the
            current folder, whose files are not the user's choice to run.
    """

    def __init__(self, left_out: Sequence[str] = ()) -> None:
        sys.path[:] = [folder for folder in sys.path if folder not in left_out]
        self._worker: NodeWorker | None = None

    def describe(self) -> tuple[str, dict[str, str | None]]:
        """Return the name of the node, and its versions of Python, this program and libraries."""
        return socket.gethostname(), find_versions()

    def run(self, function: bytes) -> bytes:
        """Call a pickled function, and return its pickled result, or the error that it raised."""
        try:
            return pickle.dumps(pickle.loads(function)())
        except Exception as error:  # a worker's edge
            return pickle.dumps(error)

    def begin(self, task: bytes) -> None:
        """Begin to work on a pickled `NodeTask`."""
        from idefics_cli.caption.executors.node import NodeWorker

        self._worker = NodeWorker(pickle.loads(task))

    def add(self, pictures: bytes) -> None:
        """Give the worker pickled pictures."""
        self._begun.add(pickle.loads(pictures))

    def stop(self) -> None:
        """Let the worker finish its current batch."""
        self._begun.stop()

    def events(self) -> bytes:
        """Wait a moment for events of the worker, and return them as a pickled list."""
        return pickle.dumps(self._begun.events())

    @property
    def _begun(self) -> NodeWorker:
        if self._worker is None:
            raise RuntimeError("the worker has not begun")
        return self._worker


def find_versions() -> dict[str, str | None]:
    """Return the versions of Python, this program and its libraries; None for what is missing."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    try:
        versions["idefics-cli"] = importlib.import_module("idefics_cli").__version__
    except ImportError:
        versions["idefics-cli"] = None
    for package in PACKAGES:
        try:
            # Builds for other devices have the same version before the "+".
            versions[package] = importlib.metadata.version(package).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions
