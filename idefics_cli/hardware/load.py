"""The work of other programs on this machine, which disturbs measurements."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

# A measurement is marked as disturbed if other programs keep more cores busy than this.
FOREIGN_LIMIT = 0.25


def count_other_tasks(proc: Path = Path("/proc")) -> int:
    """Return how many threads of other programs run or wait for a core now; 0 if unknown.

    Args:
        proc: The folder `/proc`; see proc(5) on its file `loadavg`. This program is assumed to have
            one thread that runs.
    """
    try:
        running = (proc / "loadavg").read_text(encoding="ascii").split()[3].partition("/")[0]
        return max(0, int(running) - 1)
    except (OSError, ValueError, IndexError):
        return 0


class MachineLoad(Protocol):
    """A source of the CPU time that the programs of the machine have used."""

    def busy_seconds(self) -> float | None:
        """Return the CPU seconds of all programs since a fixed moment; None if unknown."""
        ...

    def own_seconds(self) -> float:
        """Return the CPU seconds of this program and its child processes."""
        ...


@dataclass(slots=True)
class ForeignLoad:
    """Observes how many cores other programs keep busy.

    Attributes:
        load: Returns the CPU time that programs have used.
        clock: Returns seconds.
        cores: Cores that other programs kept busy on average; None if unknown.
    """

    load: MachineLoad
    clock: Callable[[], float]
    cores: float | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Measure the load by other programs during the `with` block."""
        clock, load = self.clock, self.load
        began, busy, own = clock(), load.busy_seconds(), load.own_seconds()
        yield
        wall, busy_after, own_after = clock() - began, load.busy_seconds(), load.own_seconds()
        if busy is not None and busy_after is not None and wall > 0:
            self.cores = max(0.0, (busy_after - busy) - (own_after - own)) / wall


class SystemLoad:
    """The load of this machine, from `/proc` (see proc(5)).

    Args:
        proc: The folder `/proc`.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc

    def busy_seconds(self) -> float | None:
        """Return the CPU seconds of all programs; see `MachineLoad.busy_seconds`."""
        try:
            first = (self._proc / "stat").read_text(encoding="ascii").splitlines()[0].split()
            fields = dict(zip(_FIELDS, map(int, first[1:]), strict=False))
        except (OSError, ValueError, IndexError):
            return None
        # `user` already includes the time of virtual machines (`guest`), and no program works
        # during `idle` and `iowait`. So these three fields are left out.
        return _ticks(fields) / os.sysconf("SC_CLK_TCK")

    def own_seconds(self) -> float:
        """Return the CPU seconds of this program; see `MachineLoad.own_seconds`."""
        # `os.times` includes a child process only after it has ended, so running children are
        # added.
        times = os.times()
        ended = times.user + times.system + times.children_user + times.children_system
        return ended + sum(map(self._child_seconds, self._proc.glob("[0-9]*/stat")))

    def _child_seconds(self, stat: Path) -> float:
        """Return the CPU seconds of a process and its ended children; 0 if it is no child of ours.

        Args:
            stat: File `stat` of the process in `/proc`.
        """
        try:
            text = stat.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return 0.0
        # The second field is a name in brackets, which may itself contain spaces and brackets. So
        # the text is split after the last bracket.
        fields = text.rpartition(")")[2].split()
        if fields[1] != str(os.getpid()):
            return 0.0
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


_FIELDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")


def _ticks(fields: Mapping[str, int]) -> int:
    return sum(ticks for name, ticks in fields.items() if name not in ("idle", "iowait"))
