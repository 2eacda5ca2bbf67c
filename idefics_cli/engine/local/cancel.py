"""Flags that stop work in another thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Flag(Protocol):
    """Anything that can be set, such as a `threading.Event`."""

    def is_set(self) -> bool:
        """Return whether the flag is set."""
        ...


@dataclass(frozen=True, slots=True)
class AnyOf:
    """A flag that is set when one of several flags is set."""

    flags: tuple[Flag, ...]

    def is_set(self) -> bool:
        """Return whether one of the flags is set."""
        return any(flag.is_set() for flag in self.flags)
