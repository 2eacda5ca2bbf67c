"""Log records of this program, as messages of the console."""

from __future__ import annotations

import logging

from idefics_cli.ui.terminal.console import Console

_LOGGER = "idefics_cli"


class ConsoleHandler(logging.Handler):
    """Writes a warning with its label, as all other warnings of a command.

    A record of a higher level, or with a traceback, is a fault of this program. It is written as
    logging writes it.

    Args:
        console: Receives the records.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console
        self._plain = logging.StreamHandler(console.err)

    def emit(self, record: logging.LogRecord) -> None:
        """Write *record*; from any thread."""
        if record.levelno > logging.WARNING or record.exc_info:
            self._plain.emit(record)
        else:
            self._console.warn(record.getMessage())


def log_to(console: Console) -> None:
    """Write the log records of this program to *console*, in place of an earlier one."""
    logger = logging.getLogger(_LOGGER)
    for handler in [*logger.handlers]:
        if isinstance(handler, ConsoleHandler):
            logger.removeHandler(handler)
    logger.addHandler(ConsoleHandler(console))
