"""The packages that both servers need, beside those of a plain installation."""

from __future__ import annotations

from importlib.util import find_spec

from idefics_cli.core.errors import IdeficsError

SERVER_PACKAGES = ("starlette", "prometheus_client", "uvicorn", "fastapi", "openai")


def check_packages() -> None:
    """Check that both servers can start.

    Raises:
        IdeficsError: If a package is missing.
    """
    for package in SERVER_PACKAGES:
        if find_spec(package) is None:
            raise IdeficsError(
                f"both servers need the package {package}",
                hint="pip install 'idefics-cli[serve]' 'transformers[serving]'",
            )
