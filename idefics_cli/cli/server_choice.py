"""`--server`: the model that answers runs elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from idefics_cli.cli.api_key import KEY_VARIABLE, read_key
from idefics_cli.cli.invocation import Invocation
from idefics_cli.cli.model_choice import image_limits
from idefics_cli.config.settings import LOCAL, setting_table
from idefics_cli.core.errors import IdeficsError, NoServerError, UsageError
from idefics_cli.core.types import LoadSpec
from idefics_cli.engine.remote.address import is_local, read_address

if TYPE_CHECKING:
    from idefics_cli.engine.remote.survey import ServedModel

# The server has chosen these.
_CHOSEN_THERE = (
    *("revision", "adapter", "device", "devices", "dtype", "quantization", "attention"),
    *("splitting", "longest_edge", "threads"),
)


def served_spec(invocation: Invocation, *, model: str | None = None) -> LoadSpec:
    """Return the spec of a model of the server.

    Args:
        invocation: The call, whose settings name the server.
        model: The model; None takes that of the settings, or the only one of the server.

    Raises:
        UsageError: If an option contradicts `--server`, or the address or the key is wrong.
        NoServerError: If the server cannot be reached, or wants another key.
        ModelError: If it does not have the model.
    """
    with telling_origin(invocation):
        url, key = server_address(invocation)
        if model is None:
            tell_destination(invocation, url, key)
        models = served_models(invocation, url, key)
        return choose_served(invocation, url, key, models, model=model)


@contextmanager
def telling_origin(invocation: Invocation) -> Iterator[None]:
    """Add to the hints of errors where the address comes from if no option of the call gave it."""
    try:
        yield
    except IdeficsError as error:
        error.add_hint(_origin_hint(invocation))
        raise


def _origin_hint(invocation: Invocation) -> str:
    place = _place_of_address(invocation)
    if place is None:
        return ""
    return f"{place} names the server; `--server {LOCAL}` runs the model here"


def _place_of_address(invocation: Invocation) -> str | None:
    """Return the variable or the file that names the server; None if `--server` is typed."""
    origin = invocation.resolved.origins["server"]
    if origin.source == "flag":
        return None
    return f"`{origin.name}`" if origin.name else "this chat"


def choose_served(
    invocation: Invocation,
    url: str,
    key: str,
    models: tuple[ServedModel, ...],
    *,
    model: str | None = None,
) -> LoadSpec:
    """Return the spec of one of *models*; see `served_spec`.

    Raises:
        ModelError: If the server does not have the model, or none is named.
    """
    from idefics_cli.engine.remote.survey import choose_model, spec_of

    named = model or _named_model(invocation, models)
    spec = spec_of(
        url,
        key,
        choose_model(url, key, models, named),
        limits=image_limits(invocation.settings),
        offline=invocation.settings.offline,
    )
    assert spec.server is not None
    server = replace(spec.server, origin_hint=_origin_hint(invocation))
    return replace(spec, server=server)


def server_address(invocation: Invocation) -> tuple[str, str]:
    """Return the address of the server, and its key, "" if there is none.

    Raises:
        UsageError: If an option contradicts `--server`, or the address or the key is wrong.
    """
    settings, origins = invocation.settings, invocation.resolved.origins
    for name in _CHOSEN_THERE:
        if origins[name].source == "flag":
            flag = setting_table()[name].flag
            server = "--server" if _place_of_address(invocation) is None else "a server"
            raise UsageError(
                f"{flag} and {server} exclude each other: the server runs the model",
                hint=f"leave `{flag}` out",
            )
    url = read_address(settings.server or "")
    if settings.offline and not is_local(url):
        raise UsageError(f"--offline is set, and {url} is another machine")
    return url, read_key(invocation, least=1) or ""


def tell_destination(invocation: Invocation, url: str, key: str) -> None:
    """Tell the user that pictures leave this machine, if they do."""
    if is_local(url):
        return
    if key and url.startswith("http:"):
        invocation.console.warn(f"the key goes to {url} unencrypted; https protects it")
    invocation.console.note(f"pictures and prompts go to {url}")


def served_models(invocation: Invocation, url: str, key: str) -> tuple[ServedModel, ...]:
    """Return the models of a server; see `survey.list_models`."""
    from idefics_cli.engine.remote.survey import list_models

    try:
        with invocation.console.status(f"asking {url}"):
            return list_models(url, key)
    except NoServerError as error:
        if "answers 401" in str(error) and not key:
            error.hint = f"put its key into the variable {KEY_VARIABLE}"
        raise


def check_sight(invocation: Invocation, spec: LoadSpec) -> None:
    """Check that the model of a server sees pictures; our own server has no others.

    Raises:
        NoServerError: If it does not, or does not answer.
    """
    from idefics_cli.engine.remote.survey import find_sight

    if spec.server is None or spec.server.is_ours:
        return
    with invocation.console.status("checking that the server sees pictures"):
        sight = find_sight(spec)
    if sight == "no":
        error = NoServerError(
            f"`{spec.name}` at {spec.server.url} does not see pictures: they change nothing",
            hint="choose another model with `-m`",
        )
        error.add_hint(spec.server.origin_hint)
        raise error
    if sight == "unknown":
        invocation.console.warn("the server counts no tokens, so it may not see pictures")


def with_served_model(invocation: Invocation) -> Invocation:
    """Return *invocation* with the model of its server as the model."""
    resolved, name = invocation.resolved, served_spec(invocation).name
    settings = replace(resolved.settings, model=name)
    return replace(invocation, resolved=replace(resolved, settings=settings))


def _named_model(invocation: Invocation, models: tuple[ServedModel, ...]) -> str | None:
    name, source = invocation.settings.model, invocation.resolved.origins["model"].source
    if source in ("flag", "environment"):
        return name
    # The model of the file is the one for this machine; it counts only if the server has it.
    known = {each for model in models for each in (model.name, *model.other_names)}
    return name if source == "file" and name in known else None
