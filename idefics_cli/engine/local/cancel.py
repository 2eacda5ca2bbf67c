"""How work that goes on in another thread is told to stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Flag(Protocol):
    """Anything that can be set, as a `threading.Event`."""

    def is_set(self) -> bool:
        """Return whether it is set."""
        ...


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Is set when one of several flags is."""

    flags: tuple[Flag, ...]

    def is_set(self) -> bool:
        """Return whether one is set."""
        return any(flag.is_set() for flag in self.flags)
