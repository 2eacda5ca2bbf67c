"""`idefics doctor --server`: what a server is, and what it can do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from idefics_cli.cli.invocation import Invocation
from idefics_cli.cli.server_choice import (
    choose_served,
    served_models,
    server_address,
    tell_destination,
    telling_origin,
)
from idefics_cli.core.errors import EXIT_DONE, EXIT_FAILURE, IdeficsError
from idefics_cli.core.text import abbreviated
from idefics_cli.core.types import LoadSpec
from idefics_cli.core.units import counted

if TYPE_CHECKING:
    from idefics_cli.engine.remote.survey import ServedModel, Sight

_MOST_SHOWN = 20
_SEES = {"yes": "yes", "no": "no", "unknown": "unknown: the server counts no tokens"}


def check_server(invocation: Invocation) -> int:
    """Show what the server of the settings is; return the exit code.

    Raises:
        IdeficsError: If the server cannot be reached, or an option is wrong.
    """
    from idefics_cli.engine.remote.survey import find_sight

    with telling_origin(invocation):
        url, key = server_address(invocation)
        tell_destination(invocation, url, key)
        models = served_models(invocation, url, key)
    spec: LoadSpec | None = None
    sight: Sight | None = None
    problem: IdeficsError | None = None
    try:
        with telling_origin(invocation):
            spec = choose_served(invocation, url, key, models)
        if spec.chats:
            with invocation.console.status("asking about a picture"):
                sight = find_sight(spec)
    except IdeficsError as error:
        problem = error
    if invocation.settings.json:
        invocation.console.json(_record(url, models, spec, sight, problem))
    else:
        for line in _lines(url, models, spec, sight, problem):
            invocation.console.line(line)
    return EXIT_DONE if problem is None and sight != "no" else EXIT_FAILURE


def _record(
    url: str,
    models: tuple[ServedModel, ...],
    spec: LoadSpec | None,
    sight: Sight | None,
    problem: IdeficsError | None,
) -> dict[str, object]:
    server = None if spec is None else spec.server
    return {
        "ready": problem is None and sight != "no",
        "error": None if problem is None else {"message": str(problem), "hint": problem.hint},
        "server": url,
        "models": [model.name for model in models],
        "model": None if spec is None else spec.name,
        "owner": None if server is None else server.owner,
        "is_idefics_serve": server is not None and server.is_ours,
        "chats": None if spec is None else spec.chats,
        "context_tokens": None if server is None else server.context_tokens,
        "revision": None if server is None else server.revision,
        "sees_pictures": sight,
    }


def _lines(
    url: str,
    models: tuple[ServedModel, ...],
    spec: LoadSpec | None,
    sight: Sight | None,
    problem: IdeficsError | None,
) -> list[str]:
    names = ", ".join(abbreviated(model.name) for model in models[:_MOST_SHOWN])
    more = f" and {len(models) - _MOST_SHOWN} more" if len(models) > _MOST_SHOWN else ""
    lines = [f"server: {url}", f"models: {names or 'it does not list them'}{more}"]
    if spec is not None and spec.server is not None:
        context, owner = spec.server.context_tokens, spec.server.owner
        kind = "`idefics serve`" if spec.server.is_ours else abbreviated(owner) or "unknown"
        lines += [
            f"software: {kind}",
            f"model: {spec.name}" + ("" if spec.chats else ", which completes texts only"),
            f"context: {counted(context, 'token') if context else 'unknown'}",
        ]
    if sight is not None:
        lines.append(f"sees pictures: {_SEES[sight]}")
    if problem is not None:
        hint = f" ({problem.hint})" if problem.hint else ""
        return [*lines, "", f"not ready: {problem}{hint}"]
    assert spec is not None  # else there is a problem
    if sight == "no":
        return [*lines, "", f"not ready: {spec.name} does not see pictures"]
    return [*lines, "", f"ready: {spec.name} answers at {url}"]
