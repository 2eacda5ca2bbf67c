"""`idefics` and `python -m idefics_cli`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run `idefics` with the arguments of this process."""
    if sys.argv[1:2] == ["__complete"]:
        # A shell asks at a press of TAB; see answers.py.
        from idefics_cli.completion.answers import run as complete

        complete(sys.argv[2:])
    try:
        # Inside, so that Ctrl-C during the imports prints no traceback.
        from idefics_cli.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
