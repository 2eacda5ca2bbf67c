"""`idefics chat`: a conversation at the keyboard, or one question that is piped in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from idefics_cli.cli import options
from idefics_cli.cli.answer import answer_once
from idefics_cli.cli.invocation import Invocation, begin_command
from idefics_cli.cli.model_choice import (
    confirm_download,
    find_facts,
    image_limits,
    plan_for,
    report_warnings,
    sampling,
    with_base_model,
)
from idefics_cli.cli.pictures import check_videos
from idefics_cli.cli.question import AskedQuestion
from idefics_cli.cli.server_choice import (
    check_sight,
    served_spec,
    server_address,
    tell_destination,
    with_served_model,
)
from idefics_cli.cli.services import Services
from idefics_cli.config.settings import ANSWER_TOKENS
from idefics_cli.core.errors import IdeficsError, UsageError
from idefics_cli.core.paths import data_folder
from idefics_cli.core.types import LoadSpec, Progress
from idefics_cli.engine.protocol import Engine
from idefics_cli.engine.remote.address import read_address
from idefics_cli.models.hub.registry import base_model_error
from idefics_cli.ui.terminal.console import Console, write

if TYPE_CHECKING:
    from idefics_cli.chat.attachments import PictureOpener, StagedPicture
    from idefics_cli.chat.commands.dispatch import Dispatcher
    from idefics_cli.chat.dialogue import Chat
    from idefics_cli.chat.loading import Load, Loading, LoadPlan
    from idefics_cli.chat.store.sessions import NullStore, OpenSession, SessionStore
    from idefics_cli.config.settings import Settings
    from idefics_cli.ui.chat.line_input import LineInput

_HISTORY = "chat_history"
_BESIDE = " + "
_AT = " at "


def chat(
    context: typer.Context,
    image: options.Images = None,
    resume: options.Continue = False,
    session: options.Session = None,
    model: options.Model = None,
    server: options.Server = None,
    api_key_file: options.ServerKeyFile = None,
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
    system: options.System = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    repetition_penalty: options.RepetitionPenalty = None,
    max_new_tokens: options.MaxNewTokens = None,
    seed: options.Seed = None,
    max_pixels: options.MaxPixels = None,
    max_bytes: options.MaxBytes = None,
    timeout_seconds: options.TimeoutSeconds = None,
    truncated: options.Truncated = None,
    background: options.Background = None,
    json: options.Json = None,
    stream: options.Stream = None,
    plain: options.Plain = None,
    preview: options.Preview = None,
    accessible: options.Accessible = None,
    save: options.Save = None,
    dry_run: options.DryRun = None,
    verbose: options.Verbose = None,
    quiet: options.Quiet = None,
) -> None:
    """Talk about pictures, or answer one question from a pipe.

    `idefics chat -i photo.jpg` or `echo "What is in it?" | idefics chat -i photo.jpg`

    In a chat, `/help` lists the commands. Every turn is saved; `idefics chat -c` continues the last
    chat.
    """
    invocation = begin_command(context)
    sources = image or ()
    if invocation.settings.dry_run or not _has_keyboard(invocation):
        if resume or session:
            raise UsageError(
                f"{'--continue' if resume else '--session'} needs a keyboard",
                hint="leave it out, and the question on stdin is answered alone",
            )
        answer_once(invocation, AskedQuestion(None, sources))
        return
    _check(invocation, sources, resume=resume, session=session)
    with ExitStack() as stack:
        _talk(invocation, sources, "last" if resume else session, stack)


def _has_keyboard(invocation: Invocation) -> bool:
    stdin = invocation.services.stdin
    return stdin is not None and not stdin.closed and stdin.isatty()


def _check(
    invocation: Invocation, sources: Sequence[str], *, resume: bool, session: str | None
) -> None:
    if invocation.settings.json:
        raise UsageError("--json needs a question that is piped in")
    if "-" in sources:
        raise UsageError("`-i -` needs a picture on stdin, which is the keyboard here")
    if resume and session:
        raise UsageError("--continue and --session exclude each other")
    if not invocation.console.err.isatty():
        raise UsageError(
            "a chat at the keyboard needs a terminal on stderr",
            hint="`idefics ask PROMPT -i PICTURE`, or pipe the question into `idefics chat`",
        )


def _talk(
    invocation: Invocation, sources: Sequence[str], key: str | None, stack: ExitStack
) -> None:
    from idefics_cli.chat.attachments import PictureOpener
    from idefics_cli.chat.commands.dispatch import Dispatcher
    from idefics_cli.chat.loading import Loading
    from idefics_cli.ui.terminal.keyboard import leaving_on_termination, silent_keyboard

    stack.enter_context(leaving_on_termination())
    stack.enter_context(silent_keyboard())
    _erase_echo(invocation.console)
    resolved, invocation = invocation.resolved, with_base_model(invocation)
    opener = PictureOpener(image_limits(invocation.settings), offline=invocation.settings.offline)
    if invocation.settings.server is not None:
        invocation = with_served_model(invocation)
    check_videos(invocation, sources)
    # Pictures are opened before the model is loaded, so that a bad one ends the command at once.
    pictures = [opener.stage(source) for source in sources]
    store, session = _open_session(invocation, key)
    stack.callback(session.close)
    if session.conversation.turns and not (
        resolved.is_given("model")
        or resolved.is_given("adapter")
        or invocation.settings.server is not None
    ):
        invocation = _as_before(invocation, session.conversation.model)
    name = _name_of(invocation.settings)
    loading = Loading(name, _find_model(invocation, name))
    talk = _chat(invocation, loading, session, store, opener)
    stack.callback(talk.close)
    draft = talk.turns.take_back() if session.conversation.pending else ""
    talk.turns.staged += pictures
    _run(invocation, Dispatcher(talk, Path.cwd(), draws=invocation.console.draws), pictures, draft)


def _erase_echo(console: Console) -> None:
    """Erase the keys that the terminal has shown until now; the first line input shows them."""
    from idefics_cli.ui.terminal.keyboard import has_typed_text

    if has_typed_text(wait_seconds=0.0):
        write(console.err, "\r\x1b[K" if console.draws else "\n")


def _run(
    invocation: Invocation,
    dispatcher: Dispatcher,
    pictures: Sequence[StagedPicture],
    draft: str,
) -> None:
    """Load the model in the background, show what goes on, and run the chat to its end."""
    from idefics_cli.chat.descriptions import describe_resumed
    from idefics_cli.ui.chat.line_input import TypedAhead
    from idefics_cli.ui.chat.preview import Previews, draws_pictures
    from idefics_cli.ui.chat.repl import Repl
    from idefics_cli.ui.terminal.graphics import TerminalReply, ask_terminal

    console, talk = invocation.console, dispatcher.chat
    conversation = talk.conversation
    asks = draws_pictures(console) and talk.display("preview")
    terminal = ask_terminal(console.err, invocation.services.environ) if asks else TerminalReply()
    previews = Previews(console, graphics=terminal.graphics)
    lines = TypedAhead(terminal.typed, _lines(invocation, dispatcher), console.tell)
    repl = Repl(dispatcher, console, lines, previews)
    talk.model.loading.start()
    console.tell(f"{talk.model.name}: /help lists the commands, Ctrl-D leaves")
    if conversation.turns:
        for line in describe_resumed(conversation, model=talk.model.name, folder=dispatcher.folder):
            console.tell(line)
    first = len(conversation.pictures) + len(talk.turns.staged) - len(pictures) + 1
    repl.show_attached(pictures, first)
    repl.run(draft=draft)
    if invocation.settings.save and talk.conversation.turns:
        console.note("`idefics chat -c` continues this chat")


def _open_session(
    invocation: Invocation, key: str | None
) -> tuple[SessionStore | NullStore, OpenSession]:
    from idefics_cli.chat.store.sessions import LAST, NullStore, SessionStore

    settings = invocation.settings
    kept = SessionStore(data_folder(invocation.services.environ))
    if key is not None and (key == LAST or any(key in (i.id, i.name) for i in kept.list())):
        if not settings.save:
            return NullStore(), NullStore().create(_name_of(settings), start=kept.read(key)[1])
        return kept, kept.open(key)
    store = kept if settings.save else NullStore()
    if key is not None:
        invocation.console.note(f"there is no session `{key}` yet; this one gets the name")
    return store, store.create(_name_of(settings), key, system=settings.system)


def _name_of(settings: Settings) -> str:
    """Return the model, with its adapter or its server, as chats and sessions name it."""
    if settings.server is not None:
        return f"{settings.model}{_AT}{read_address(settings.server)}"
    adapter = settings.adapter
    return settings.model if adapter is None else f"{settings.model}{_BESIDE}{adapter}"


def _split_server(name: str) -> tuple[str, str | None]:
    """Return the model of a server and its address, or the whole *name* if it has no server."""
    model, at, url = name.rpartition(_AT)
    return (model, url) if at and url.startswith(("http://", "https://")) else (name, None)


def _as_before(invocation: Invocation, name: str) -> Invocation:
    """Return *invocation* with the model *name* of a session, and with its server if it has one."""
    model, url = _split_server(name)
    if url is None or invocation.resolved.is_given("server"):  # `--server local`
        return _with_model(invocation, *_split_name(model))
    invocation = _with_model(invocation, model)
    resolved = invocation.resolved
    settings = replace(resolved.settings, server=url)
    invocation = replace(invocation, resolved=replace(resolved, settings=settings))
    tell_destination(invocation, *server_address(invocation))
    return invocation


def _split_name(name: str) -> tuple[str, str | None]:
    """Return the model and the adapter that `_name_of` gave the *name*."""
    model, beside, adapter = name.partition(_BESIDE)
    return (model, adapter) if beside and not Path(name).exists() else (name, None)


def _with_model(invocation: Invocation, name: str, adapter: str | None = None) -> Invocation:
    resolved = invocation.resolved.for_model(name)
    settings = replace(resolved.settings, adapter=adapter)
    return replace(invocation, resolved=replace(resolved, settings=settings))


def _find_model(invocation: Invocation, name: str, *, replaces_other: bool = False) -> LoadPlan:
    """Look up the model *name*, and return a function that plans and loads it.

    A model on this machine is planned later in the background, because the plan imports torch,
    which takes seconds. A model that must be downloaded is planned now, because the user may have
    to agree to the download. If the model *replaces_other*, its plan is made when the memory of the
    other model is free again.

    Raises:
        IdeficsError: If the model is unknown, does not chat, or cannot be downloaded.
    """
    if invocation.settings.server is not None:
        return _find_served(invocation, _split_server(name)[0])
    chosen, services = _with_model(invocation, *_split_name(name)), invocation.services
    facts = find_facts(chosen)
    if not facts.chats:
        raise base_model_error(name)
    if facts.folder is None and replaces_other:
        confirm_download(chosen, facts)
    elif facts.folder is None:
        plan = plan_for(chosen, facts=facts)
        report_warnings(chosen, plan)
        return lambda warn: partial(_load, services, plan.spec)
    silent = replace(chosen, console=replace(chosen.console, quiet=True))

    def decide(warn: Callable[[str], None]) -> Load:
        plan = plan_for(silent, facts=facts)
        for warning in plan.warnings:
            warn(warning)
        return partial(_load, services, plan.spec)

    return decide


def _find_other(invocation: Invocation, typed: str) -> tuple[str, LoadPlan]:
    """Look up the model that the user typed in a chat; see `ModelSwitch`."""
    name, server = typed, invocation.settings.server
    if server is not None:
        name = f"{_split_server(typed)[0]}{_AT}{read_address(server)}"
    return name, _find_model(invocation, name, replaces_other=True)


def _find_served(invocation: Invocation, name: str) -> LoadPlan:
    """Return what makes the engine for the model *name* of the server; see `_find_model`."""
    spec = served_spec(invocation, model=name)
    if not spec.chats:
        raise base_model_error(name)
    silent = replace(invocation, console=replace(invocation.console, quiet=True))

    def decide(warn: Callable[[str], None]) -> Load:
        try:
            check_sight(silent, spec)
        except IdeficsError as error:
            warn(str(error))  # a conversation without pictures is still possible
        return partial(_load, invocation.services, spec)

    return decide


def _load(services: Services, spec: LoadSpec, progress: Progress) -> Engine:
    return services.make_factory(spec)(progress=progress)


def _chat(
    invocation: Invocation,
    loading: Loading,
    session: OpenSession,
    store: SessionStore | NullStore,
    opener: PictureOpener,
) -> Chat:
    from idefics_cli.chat.dialogue import Chat

    settings = invocation.settings
    talk = Chat(
        loading,
        session,
        store=store,
        find_model=partial(_find_other, invocation),
        sampling=sampling(settings, default_tokens=ANSWER_TOKENS),
        displays={"plain": settings.plain, "preview": settings.preview},
        pictures=opener,
        clock=invocation.services.clock,
    )
    if session.conversation.turns:
        if session.conversation.model != talk.model.name:
            session.set_model(talk.model.name)
        if invocation.resolved.origins["system"].source == "flag":
            session.set_system(settings.system)
    return talk


def _lines(invocation: Invocation, dispatcher: Dispatcher) -> LineInput:
    from idefics_cli.ui.chat.line_input import DrawnInput, PlainInput
    from idefics_cli.ui.chat.reflow import wraps_anew

    console, environ = invocation.console, invocation.services.environ
    history = data_folder(environ) / _HISTORY if invocation.settings.save else None
    if console.draws:
        return DrawnInput(
            console.err,
            dispatcher.complete,
            history,
            is_over=lambda: dispatcher.chat.model.loading.error is not None,
            wraps_anew=wraps_anew(environ),
        )
    return PlainInput(console.tell, dispatcher.complete, history)
