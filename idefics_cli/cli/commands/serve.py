"""`idefics serve`: a model for the clients of OpenAI's API."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from idefics_cli.cli import options
from idefics_cli.cli.answer import show_plan
from idefics_cli.cli.api_key import KEY_VARIABLE, read_key
from idefics_cli.cli.invocation import Invocation, begin_command
from idefics_cli.cli.model_choice import image_limits, plan_for, report_warnings, sampling
from idefics_cli.config.settings import ANSWER_TOKENS, Settings
from idefics_cli.core.errors import UsageError
from idefics_cli.core.servers import is_loopback
from idefics_cli.core.types import ImageLimits, LoadSpec, SourceKind

if TYPE_CHECKING:
    import socket

    from idefics_cli.models.planning.plan import Plan
    from idefics_cli.server.guards import Access
    from idefics_cli.server.lines import LogLines
    from idefics_cli.server.service import ServerOptions

_HOST_NAME = re.compile(r"[a-z0-9._-]{1,253}|[0-9a-f:.]{2,45}")
# Extensions of browsers have schemes of their own.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]{0,40}://[^/?#\s*]{1,300}")
INSTALL_HINT = "pip install 'idefics-cli[serve]'"

_SECONDS = {"s": 1, "m": 60, "h": 3600}
# The pictures of strangers are smaller than those of the user.
_MOST_PIXELS = 50_000_000
_MOST_BYTES = 20_000_000
_DOWNLOAD_SECONDS = 10.0
_LEAST_KEY = 8

MaxPixels = Annotated[str | None, options.picture_limit("max_pixels", default=_MOST_PIXELS)]
MaxBytes = Annotated[
    str | None,
    options.picture_limit(
        "max_bytes", default=_MOST_BYTES, text="Refuse pictures with more bytes than this."
    ),
]
DownloadSeconds = Annotated[
    str | None,
    options.picture_limit(
        "timeout_seconds", default=_DOWNLOAD_SECONDS, text="Longest time of a whole download."
    ),
]


def serve(
    context: typer.Context,
    model: options.Model = None,
    revision: options.Revision = None,
    adapter: options.AdapterName = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantization: options.QuantizationName = None,
    attention: options.AttentionName = None,
    splitting: options.Splitting = None,
    longest_edge: options.LongestEdge = None,
    offline: options.Offline = None,
    threads: options.Threads = None,
    yes: options.Yes = None,
    host: options.Host = None,
    port: options.Port = None,
    api_key_file: options.ApiKeyFile = None,
    origin: options.Origin = None,
    allowed_host: options.AllowedHost = None,
    served_name: options.ServedName = None,
    queue: options.Queue = None,
    keep_alive: options.KeepAlive = None,
    drain_seconds: options.DrainSeconds = None,
    max_request_bytes: options.MaxRequestBytes = None,
    system: options.System = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    repetition_penalty: options.RepetitionPenalty = None,
    max_new_tokens: options.MaxNewTokens = None,
    seed: options.Seed = None,
    image_urls: options.ImageUrls = None,
    max_images: options.MaxImages = None,
    max_pixels: MaxPixels = None,
    max_bytes: MaxBytes = None,
    timeout_seconds: DownloadSeconds = None,
    truncated: options.Truncated = None,
    background: options.Background = None,
    json: options.Json = None,
    dry_run: options.DryRun = None,
    verbose: options.Verbose = None,
    quiet: options.Quiet = None,
) -> None:
    """Let programs ask the model over HTTP, as they ask OpenAI.

    `idefics serve -m smolvlm-500m`

    Only programs on this machine can ask, unless there is a key. Requests cannot read files.
    """
    invocation = begin_command(context)
    raise typer.Exit(_serve(invocation))


def _serve(invocation: Invocation) -> int:
    """Serve until a signal, and return the exit code."""
    settings = invocation.settings
    try:
        from idefics_cli.server.lines import LogLines
        from idefics_cli.server.run import Lifetime, RunningServer, open_socket
    except ImportError as error:
        raise UsageError(
            f"`idefics serve` needs the package {error.name}", hint=INSTALL_HINT
        ) from error
    access = _access(invocation)
    if settings.dry_run:
        show_plan(invocation, plan_for(invocation))
        return 0
    # A port that is taken is found before the model is looked at, which takes seconds.
    with (
        open_socket(settings.host, settings.port) as listener,
        LogLines(invocation.console.tell) as lines,
    ):
        plan = plan_for(invocation)
        report_warnings(invocation, plan)
        server_options = _options(invocation, plan, access)
        name = server_options.names[0]
        lines.tell(f"loading {name}")
        server = RunningServer(
            server_options,
            invocation.services.make_factory(server_options.spec),
            listener,
            tell=lines.tell,
            lifetime=Lifetime(
                drain_seconds=settings.drain_seconds,
                ready=lambda: _tell_ready(invocation, listener, lines, name, access),
            ),
        )
        return server.run()


def _tell_ready(
    invocation: Invocation, listener: socket.socket, lines: LogLines, name: str, access: Access
) -> None:
    """Tell where the server is, and a command to try it."""
    host, port = listener.getsockname()[:2]
    named = f"[{host}]" if ":" in host else host
    here = "127.0.0.1" if named in ("0.0.0.0", "[::]") else named
    if invocation.settings.json:
        invocation.console.json({"url": f"http://{named}:{port}/v1", "port": port, "model": name})
        return
    lines.tell(f"{name} answers at http://{named}:{port}/v1, until Ctrl-C")
    secret = [f'-H "Authorization: Bearer ${KEY_VARIABLE}"'] if access.key else []
    # A long line would be folded, and could not be copied.
    for line in (
        f"try it: curl http://{here}:{port}/v1/chat/completions \\",
        "  -H 'Content-Type: application/json' \\",
        *(f"  {header} \\" for header in secret),
        """  -d '{"messages": [{"role": "user", "content": "Hello"}]}'""",
    ):
        lines.tell(line)


def _options(invocation: Invocation, plan: Plan, access: Access) -> ServerOptions:
    from idefics_cli.server.bodies import BodyLimits
    from idefics_cli.server.service import ServerOptions

    settings = invocation.settings
    return ServerOptions(
        spec=replace(plan.spec, limits=_picture_limits(invocation)),
        access=access,
        names=_names(settings, plan.spec),
        sampling=sampling(settings, default_tokens=ANSWER_TOKENS),
        system=settings.system,
        most_images=settings.max_images,
        queue=settings.queue,
        body=BodyLimits(settings.max_request_bytes),
        most_body_bytes=4 * settings.max_request_bytes,
        keep_alive_seconds=_seconds(settings.keep_alive),
        # With an id, a line is longer than most terminals are wide.
        logs_ids=settings.verbose or not invocation.console.err.isatty(),
    )


def _names(settings: Settings, spec: LoadSpec) -> tuple[str, ...]:
    """Return the names of the model; a folder is named without the path to it."""
    given = [settings.served_name, spec.name, spec.repo]
    names = [Path(name).resolve().name if os.path.isdir(name) else name for name in given if name]
    return tuple(dict.fromkeys(name for name in names if name))


def _seconds(text: str) -> float | None:
    if text == "-1":
        return None
    unit = text[-1] if text[-1] in _SECONDS else "s"
    return float(text.removesuffix(unit)) * _SECONDS[unit]


def _picture_limits(invocation: Invocation) -> ImageLimits:
    """Return the limits of pictures, which come from outside: never a file of this machine."""
    resolved, settings = invocation.resolved, invocation.settings
    limits = image_limits(settings)
    web: tuple[SourceKind, ...] = (
        () if settings.image_urls == "off" or settings.offline else ("web",)
    )
    hosts = frozenset(name.lower() for name in _listed(settings.image_urls))
    is_timed = resolved.is_given("timeout_seconds")
    seconds = limits.timeout_seconds if is_timed else _DOWNLOAD_SECONDS
    return replace(
        limits,
        max_pixels=limits.max_pixels if resolved.is_given("max_pixels") else _MOST_PIXELS,
        max_bytes=limits.max_bytes if resolved.is_given("max_bytes") else _MOST_BYTES,
        timeout_seconds=seconds,
        download_seconds=seconds,
        sources=frozenset({"data", *web}),
        addresses="public" if settings.image_urls in ("public", "off") else hosts,
    )


def _access(invocation: Invocation) -> Access:
    """Return who may ask.

    Raises:
        UsageError: If others than this machine could ask without a key.
    """
    from idefics_cli.server.guards import Access

    settings = invocation.settings
    text = read_key(invocation, least=_LEAST_KEY)
    key = None if text is None else text.encode()
    is_local = is_loopback(settings.host)
    if key is None and not is_local:
        raise UsageError(
            f"`--host {settings.host}` lets other machines ask, and there is no key",
            hint="`openssl rand -hex 24 >key && chmod 600 key` makes one for `--api-key-file key`",
        )
    hosts = frozenset(map(_host_name, _listed(settings.allowed_host)))
    origins = frozenset(map(_checked_origin, _listed(settings.origin)))
    return Access(key=key, origins=origins, hosts=hosts if is_local or hosts else None)


def _host_name(text: str) -> str:
    """Return the name of a host as the `Host` header has it, without a port."""
    name = text.lower().removeprefix("[").removesuffix("]")
    if not _HOST_NAME.fullmatch(name):
        raise UsageError(
            f"`--allowed-host {text}` is not the name of a host",
            hint="no scheme and no port: `--allowed-host box.example`",
        )
    return name


def _checked_origin(text: str) -> str:
    """Return an origin as browsers write it: in lower case, without the usual port."""
    origin = text.lower()
    for usual in ("http://", ":80"), ("https://", ":443"):
        if origin.startswith(usual[0]):
            origin = origin.removesuffix(usual[1])
    if not _ORIGIN.fullmatch(origin):
        raise UsageError(
            f"`--origin {text}` is not an origin",
            hint="a scheme and a host, and nothing after them: `--origin https://chat.example`",
        )
    return origin


def _listed(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]
