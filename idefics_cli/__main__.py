"""The entry point of `idefics` and of `python -m idefics_cli`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run `idefics` with the arguments of this process."""
    if sys.argv[1:2] == ["__complete"]:
        # A shell asks for completions after a press of TAB; see `completion/answers.py`.
        from idefics_cli.completion.answers import run as complete

        complete(sys.argv[2:])
    try:
        # This import is inside `try`, so that Ctrl-C during it prints no traceback.
        from idefics_cli.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
