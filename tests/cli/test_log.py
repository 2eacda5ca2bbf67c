"""Log records of the engine are messages of the command."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from threading import Event

from idefics_cli.core.types import Completion
from idefics_cli.engine.protocol import Prepared
from tests.support.commands import World, run
from tests.support.fakes import FakeEngine


class Complaining(FakeEngine):
    """An engine whose kernels fail."""

    def complete(
        self, batch: Sequence[Prepared], *, cancel: Event | None = None
    ) -> list[Completion]:
        log = logging.getLogger("idefics_cli.models.loading.layers")
        log.warning("the kernel `%s` fails its self-test; torch replaces it", "int4")
        log.error("a fault")
        return super().complete(batch, cancel=cancel)


def test_a_warning_of_the_engine_has_its_label_and_is_left_out_when_quiet() -> None:
    told = "warning: the kernel `int4` fails its self-test; torch replaces it"
    ran = run("ask", "What?", services=World(Complaining(lambda request: "words")).services)
    assert ran.err.splitlines().count(told) == 1, "a second command adds no second message"
    assert "a fault" in ran.err.splitlines()
    again = run("ask", "What?", "-q", services=World(Complaining(lambda request: "words")).services)
    assert (again.code, again.err.splitlines()) == (0, ["a fault"])
