"""The actors of a Ray cluster; see `cluster.Cluster`."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from idefics_cli.caption.executors import ray_actor
from idefics_cli.caption.executors.cluster import Actor, ActorLost, Node, NodeShare
from idefics_cli.core.errors import IdeficsError, UsageError

INSTALL_HINT = "pip install 'idefics-cli[ray]'"
_REACH_SECONDS = 5.0
# After the loss of a node, Ray first reports only that its actors cannot be reached. A second
# question tells whether the process or the node is lost.
_SECOND_SECONDS = 10.0
_DEAD = re.compile(r"The actor (?:is dead|died) because (.{1,200})", re.DOTALL)


class RayCluster:
    """A Ray cluster to which this process is connected; see `cluster.Cluster`.

    Args:
        share: What each worker needs.
    """

    def __init__(self, share: NodeShare | None = None) -> None:
        self._ray = _import_ray()
        share = share or NodeShare()
        import_module("ray.cloudpickle").register_pickle_by_value(ray_actor)
        # Ray itself restarts nothing: after the loss of a node, calls would wait for ever for a
        # restarted actor that finds no place. A new worker takes the pictures of a lost one.
        self._class = self._ray.remote(ray_actor.RayActor).options(
            num_gpus=share.gpus,
            num_cpus=share.cpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=4,
        )
        self._left_out = [folder for folder in (os.getcwd(),) if folder not in sys.path]

    def nodes(self) -> list[Node]:
        """Return the nodes of the cluster at this moment."""
        found = []
        for node in self._ray.nodes():
            if node["Alive"]:
                resources = node["Resources"]
                found.append(Node(int(resources.get("GPU", 0)), int(resources.get("CPU", 0))))
        return found

    def with_share(self, share: NodeShare) -> RayCluster:
        """Return the cluster with another share; see `cluster.Cluster.with_share`."""
        return RayCluster(share)

    def hire(self) -> Actor:
        """Return a new actor; see `cluster.Cluster.hire`."""
        return _RayHandle(self._ray, self._class.remote(self._left_out))


def open_cluster(address: str) -> RayCluster:
    """Connect this process to the Ray cluster at *address*, and return it.

    Args:
        address: "auto" for the cluster of this machine, or HOST:PORT.

    Raises:
        IdeficsError: If Ray is missing, the cluster cannot be reached, or has other versions.
        UsageError: If the address is that of a Ray client.
    """
    usual = signal.getsignal(signal.SIGTERM)
    try:
        ray = _import_ray()
        if ray.is_initialized():
            return RayCluster()
        if address == "auto":
            address = os.environ.get("RAY_ADDRESS") or address
        _check_reachable(address)
        # Messages of the cluster would be among the captions.
        os.environ.setdefault("RAY_SCHEDULER_EVENTS", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        _silence()
        return RayCluster()
    except IdeficsError:
        raise
    except Exception as error:  # Ray raises errors of many classes
        raise _connection_error(address, error) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, usual)  # Ray sets one of its own


# Any: an optional library.
def _import_ray() -> Any:
    try:
        return import_module("ray")
    except ImportError as error:
        raise IdeficsError("a cluster needs the library ray", hint=INSTALL_HINT) from error


def _check_reachable(address: str) -> None:
    """Raise an error if nothing listens at *address*. Ray would try for a minute."""
    if address.startswith("ray://"):
        raise UsageError(
            f"`{address}` is a Ray client, which cannot watch its workers",
            hint="run the command on a node with `--ray auto`, for example by `ray job submit`",
        )
    host, colon, port = address.rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise IdeficsError(
            f"cannot reach the Ray cluster at `{address}`: {reason}",
            hint="the address is that of `ray start --head`, usually HOST:6379",
        ) from error


def _connection_error(address: str, error: Exception) -> IdeficsError:
    text = re.split(r"\.\s|\n", str(error).strip(), maxsplit=1)[0][:300] or type(error).__name__
    hint = "`ray status` shows whether it runs"
    if "mismatch" in text.lower():
        text = " ".join(str(error).split())[:300]
        hint = "the cluster and this machine need the same Python and the same `ray`"
    elif "auth" in text.lower():
        hint = "a cluster with RAY_AUTH_MODE=token needs the variable and the token here, too"
    return IdeficsError(f"cannot use the Ray cluster `{address}`: {text}", hint=hint)


def _silence() -> None:
    """Keep Ray from printing the errors of its processes on stdout, which has captions.

    No option does this (ray 2.60, `listen_error_messages` in _private/worker.py).
    """
    try:
        module = import_module("ray._private.worker")
    except ImportError:  # another version may have no such module
        return
    if hasattr(module, "print_to_stdstream"):
        module.print_to_stdstream = lambda *arguments, **options: None  # type: ignore[attr-defined]  # a private function


class _RayHandle:
    """The handle of an actor; see `cluster.Actor`."""

    # Any: objects of an optional library.
    def __init__(self, ray: Any, handle: Any) -> None:
        self._ray = ray
        self._handle = handle
        self._described = handle.describe.remote()

    def describe(self, wait_seconds: float) -> tuple[str, Mapping[str, str | None]] | None:
        ready, _ = self._ray.wait([self._described], timeout=wait_seconds)
        if not ready:
            return None
        result: tuple[str, Mapping[str, str | None]] = self._result(self._described)
        return result

    def run(self, function: bytes) -> bytes:
        result: bytes = self._result(self._handle.run.remote(function))
        return result

    def begin(self, task: bytes) -> None:
        self._result(self._handle.begin.remote(task))

    def add(self, pictures: bytes) -> None:
        self._handle.add.remote(pictures)

    def events(self) -> bytes:
        result: bytes = self._result(self._handle.events.remote())
        return result

    def stop(self) -> None:
        self._handle.stop.remote()

    def kill(self) -> None:
        with contextlib.suppress(Exception):  # it is dead, or the cluster is gone
            self._ray.kill(self._handle, no_restart=True)

    # Any: an optional library.
    def _result(self, reference: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.ActorUnavailableError:
            raise self._second_opinion() from None
        except errors.RayActorError as error:
            raise _lost(error) from error
        except errors.RayError as error:  # a bug of the actor, or of Ray
            raise ActorLost(_last_line(error)) from error

    def _second_opinion(self) -> ActorLost:
        errors = self._ray.exceptions
        try:
            self._ray.get(self._handle.describe.remote(), timeout=_SECOND_SECONDS)
        except errors.ActorUnavailableError:
            pass
        except errors.RayActorError as error:
            return _lost(error)
        except errors.RayError:
            pass
        return ActorLost("its node cannot be reached", blames_pictures=False)


def _lost(error: Exception) -> ActorLost:
    text = str(error)
    found = _DEAD.search(text)
    reason = " ".join(found[1].split()) if found else _last_line(error)
    if "node" in reason.split(". ")[0]:
        return ActorLost("its node is lost", blames_pictures=False)
    if "worker process has died" in reason:
        reason = "its process died, perhaps there was too little memory"
        if "SYSTEM_ERROR" not in text:
            reason = "its process ended"
    return ActorLost(reason.rstrip("."))


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
