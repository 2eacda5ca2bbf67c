"""`idefics sessions`: list, show, export and remove saved chats."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from idefics_cli.cli import options
from idefics_cli.cli.help.groups import HelpCommand, HelpGroup
from idefics_cli.cli.invocation import Invocation, begin_command
from idefics_cli.core.errors import UsageError
from idefics_cli.core.paths import data_folder
from idefics_cli.core.units import counted, format_size

if TYPE_CHECKING:
    from idefics_cli.chat.conversation import ChatPicture, Conversation
    from idefics_cli.chat.store.sessions import SessionInfo, SessionStore

app = typer.Typer(cls=HelpGroup)

_UNITS = {"h": "hours", "d": "days", "w": "weeks"}
_TITLE_CHARACTERS = 60


_KEY_HELP = "Name, id or beginning of an id; `last` for the last one."
Key = Annotated[str, typer.Argument(metavar="ID", help=_KEY_HELP)]
Keys = Annotated[list[str], typer.Argument(metavar="ID", help=_KEY_HELP)]
ExportFormat = Annotated[
    str | None,
    typer.Option(
        "--format",
        "-f",
        metavar="NAME",
        help="md, json or html (default: by the name of FILE, else md)",
        rich_help_panel=options.OUTPUT_PANEL,
        autocompletion=lambda: ["md", "json", "html"],
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Write to FILE, not to stdout.",
        rich_help_panel=options.OUTPUT_PANEL,
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        metavar="",
        help="Replace FILE if it exists.",
        rich_help_panel=options.OUTPUT_PANEL,
    ),
]
OlderThan = Annotated[
    str | None,
    typer.Option(
        "--older-than",
        metavar="TIME",
        help="Remove sessions that did not change for this time: 12h, 30d or 8w.",
    ),
]
Keep = Annotated[str | None, typer.Option("--keep", metavar="N", help="Keep the last N sessions.")]
DryRun = Annotated[bool | None, options.dry_run("Show what would be removed, and remove nothing.")]


@app.callback(invoke_without_command=True)
def sessions(
    context: typer.Context, json: options.Json = None, quiet: options.Quiet = None
) -> None:
    """List saved chats; show, export and remove them."""
    if context.invoked_subcommand is None:
        _list(begin_command(context))
    elif json or quiet:
        # Each command below has options of the same names. Here they would be ignored silently.
        raise UsageError(
            "--json and --quiet belong after the command",
            hint=f"`idefics sessions {context.invoked_subcommand} --json`",
        )


@app.command("list", cls=HelpCommand)
def list_sessions(
    context: typer.Context, json: options.Json = None, quiet: options.Quiet = None
) -> None:
    """List the sessions, the last one first."""
    _list(begin_command(context))


@app.command(cls=HelpCommand)
def show(
    context: typer.Context, key: Key, json: options.Json = None, quiet: options.Quiet = None
) -> None:
    """Print a session."""
    invocation = begin_command(context)
    info, conversation = _store(invocation).read(key)
    if invocation.settings.json:
        invocation.console.json(_record(info) | _content(conversation))
    else:
        _show(invocation, info, conversation)


@app.command(cls=HelpCommand)
def export(
    context: typer.Context,
    key: Key,
    export_format: ExportFormat = None,
    destination: Output = None,
    replace: Overwrite = False,
    quiet: options.Quiet = None,
) -> None:
    """Write a session with its pictures as one file: Markdown, JSON, or a page for a browser."""
    from idefics_cli.chat.export import FORMATS, exported, format_of, write_export

    invocation = begin_command(context)
    kind = export_format or (format_of(destination) if destination else None) or "md"
    if kind not in FORMATS:
        raise UsageError(f"--format must be md, json or html, not `{kind}`")
    info, conversation = _store(invocation).read(key)
    for picture in conversation.missing:
        invocation.console.warn(_missing(picture))
    if destination is None and invocation.console.is_terminal and conversation.pictures:
        raise UsageError(
            "the file holds its pictures and would fill the terminal",
            hint=f"`-o chat.{kind}` writes it; `idefics sessions show {key}` prints the chat",
        )
    if destination is None or str(destination) == "-":
        invocation.console.data(exported(conversation, kind))
        return
    if destination.exists() and destination.is_file() and not replace:
        raise UsageError(
            f"`{destination}` exists already",
            hint="`--overwrite` replaces it; or name another file",
        )
    write_export(conversation, kind, destination, overwrite=True)
    invocation.console.note(f"session {info.id} is in `{destination}`")


@app.command(cls=HelpCommand)
def rm(
    context: typer.Context,
    keys: Keys,
    dry_run: DryRun = None,
    quiet: options.Quiet = None,
) -> None:
    """Remove sessions, and the copies of pictures that no other session has."""
    invocation = begin_command(context)
    store = _store(invocation)
    found = list(dict.fromkeys(store.find(key) for key in keys))
    _remove(invocation, store, found)


@app.command(cls=HelpCommand)
def prune(
    context: typer.Context,
    older_than: OlderThan = None,
    keep: Keep = None,
    json: options.Json = None,
    dry_run: DryRun = None,
    quiet: options.Quiet = None,
) -> None:
    """Remove old sessions; named and open sessions stay.

    A session is removed if it is older than `--older-than` and not one of the last `--keep`.
    """
    invocation = begin_command(context)
    if older_than is None and keep is None:
        raise UsageError(
            "prune needs --older-than or --keep",
            hint="`--older-than 30d`, `--keep 20`, or both; `--dry-run` shows which",
        )
    store = _store(invocation)

    before = datetime.now(UTC) - _age(older_than)
    chosen = [
        info
        for info in store.list()[_number_to_keep(keep) :]
        if info.updated <= before
        and info.name is None
        and info.problem is None
        and not store.is_open(info.id)
    ]
    _print(invocation, chosen)
    _remove(invocation, store, [info.id for info in chosen])


def _store(invocation: Invocation) -> SessionStore:
    from idefics_cli.chat.store.sessions import SessionStore

    return SessionStore(data_folder(invocation.services.environ))


def _list(invocation: Invocation) -> None:
    infos = _store(invocation).list()
    _print(invocation, infos)
    if not infos and not invocation.settings.json:
        invocation.console.note("there are no sessions yet; `idefics chat` starts one")
    for info in infos:
        if info.problem:
            invocation.console.warn(info.problem)


def _print(invocation: Invocation, infos: list[SessionInfo]) -> None:
    from idefics_cli.ui.views.plan import align_columns

    if invocation.settings.json:
        invocation.console.json([_record(info) for info in infos])
        return
    if not infos:
        return
    rows = [("ID", "CHANGED", "TURNS", "PICTURES", "MODEL", "TITLE")]
    rows += [
        (
            info.id,
            f"{info.updated.astimezone():%Y-%m-%d %H:%M}",
            str(info.turns),
            str(info.pictures),
            info.model or "?",
            "(cannot be read)" if info.problem else _title(info),
        )
        for info in infos
    ]
    for line in align_columns(rows):
        invocation.console.report(line.removeprefix("  "))


def _title(info: SessionInfo) -> str:
    title = info.title
    return title if len(title) <= _TITLE_CHARACTERS else title[: _TITLE_CHARACTERS - 1] + "…"


def _record(info: SessionInfo) -> dict[str, object]:
    return {
        "id": info.id,
        "name": info.name,
        "title": info.title,
        "model": info.model,
        "created": info.created.isoformat(),
        "updated": info.updated.isoformat(),
        "turns": info.turns,
        "pictures": info.pictures,
        "size_bytes": info.size_bytes,
        "problem": info.problem,
    }


def _content(conversation: Conversation) -> dict[str, object]:
    from dataclasses import asdict

    return {
        "system": conversation.system,
        "settings": dict(conversation.settings),
        "conversation": [
            {
                "text": turn.text,
                "pictures": [picture.number for picture in turn.pictures],
                "reply": None if turn.reply is None else asdict(turn.reply),
            }
            for turn in conversation.turns
        ],
        "ledger": [
            {
                "number": picture.number,
                "source": picture.source,
                "file": picture.attachment.source,
                "width": picture.width,
                "height": picture.height,
                "dropped": picture.is_dropped,
                "missing": picture.is_missing,
            }
            for picture in conversation.pictures
        ],
    }


def _show(invocation: Invocation, info: SessionInfo, conversation: Conversation) -> None:
    from idefics_cli.core.text import one_line

    console = invocation.console
    when = f"{info.updated.astimezone():%Y-%m-%d %H:%M}"
    console.line(one_line(f"{info.id}  {when}  {info.model}  {info.name or ''}").rstrip())
    if conversation.system:
        console.line(f"\nSystem: {conversation.system}")
    for number, turn in enumerate(conversation.turns, 1):
        console.line("")
        for picture in turn.pictures:
            console.line(one_line(_ledger_line(picture)))
        console.line(f"{number} > {turn.text}")
        if turn.reply is None:
            console.line("(no answer)")
        else:
            mark = " (interrupted)" if turn.reply.is_interrupted else ""
            console.line(turn.reply.text + mark)


def _ledger_line(picture: ChatPicture) -> str:
    state = " (dropped)" if picture.is_dropped else " (missing)" if picture.is_missing else ""
    size = f" {picture.width}x{picture.height}" if picture.width else ""
    return f"[{picture.number}] {picture.source}{size}{state}"


def _missing(picture: ChatPicture) -> str:
    return f"picture {picture.number}, `{picture.source}`, is no longer found"


def _remove(invocation: Invocation, store: SessionStore, ids: list[str]) -> None:
    is_trial = invocation.settings.dry_run
    freed = store.remove(ids, dry_run=is_trial)
    things = counted(len(ids), "session")
    verb = "would remove" if is_trial else "removed"
    invocation.console.note(f"{verb} {things}, {format_size(freed)}")


def _number_to_keep(text: str | None) -> int:
    if text is None:
        return 0
    if not re.fullmatch(r"\d{1,9}", text.strip(), re.ASCII):
        raise UsageError(f"--keep must be a whole number, 0 or more, not `{text}`")
    return int(text)


def _age(text: str | None) -> timedelta:
    if text is None:
        return timedelta()
    match = re.fullmatch(r"(\d{1,5})([hdw])", text.strip().lower())
    if match is None:
        raise UsageError(
            f"--older-than must be a number of hours, days or weeks, not `{text}`",
            hint="for example 12h, 30d or 8w",
        )
    return timedelta(**{_UNITS[match[2]]: int(match[1])})
