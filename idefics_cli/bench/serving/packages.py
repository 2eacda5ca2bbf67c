"""The packages that both servers need, beside those of a plain installation."""

from __future__ import annotations

from importlib.util import find_spec

from idefics_cli.core.errors import IdeficsError

# Each server with its packages, and the extra that installs them.
_SERVERS = (
    ("`idefics serve`", ("starlette", "prometheus_client", "uvicorn"), "idefics-cli[serve]"),
    ("`transformers serve`", ("fastapi", "openai", "uvicorn"), "transformers[serving]"),
)
SERVER_PACKAGES = tuple(package for _, packages, _ in _SERVERS for package in packages)


def check_packages() -> None:
    """Check that both servers can start.

    Raises:
        IdeficsError: If a package is missing.
    """
    for server, packages, extra in _SERVERS:
        missing = [package for package in packages if find_spec(package) is None]
        if missing:
            raise IdeficsError(
                f"{server}, one of the two servers of this comparison, needs {', '.join(missing)}",
                hint=f"pip install '{extra}'",
            )
