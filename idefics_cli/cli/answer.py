"""The answer to a single question, for `ask` and for `chat` in a pipe."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from idefics_cli import __version__
from idefics_cli.cli.invocation import Invocation
from idefics_cli.cli.model_choice import (
    check_prompt,
    image_limits,
    opened_engine,
    plan_for,
    report_warnings,
    sampling,
)
from idefics_cli.cli.stdin import piped_text
from idefics_cli.config.settings import ANSWER_TOKENS
from idefics_cli.core.errors import PromptError, UsageError
from idefics_cli.core.sources import (
    STDIN,
    describe_source,
    is_address,
    is_clipboard,
    recorded_source,
)
from idefics_cli.core.types import (
    Attachment,
    Completion,
    Finish,
    GenerationRequest,
    Message,
    Part,
    TokenChunk,
)
from idefics_cli.core.units import counted
from idefics_cli.engine.protocol import Engine, Prepared
from idefics_cli.models.families.picture_marks import (
    PlacedPrompt,
    check_marks,
    count_tokens,
    place_pictures,
    read_marks,
    read_tokens,
    references,
)
from idefics_cli.models.families.raw_prompt import check_count
from idefics_cli.models.families.spec import IMAGE_TOKEN
from idefics_cli.models.hub.registry import base_model_error

if TYPE_CHECKING:
    from idefics_cli.engine.schema.form import ReplyForm
    from idefics_cli.models.planning.plan import Plan


def answer_once(
    invocation: Invocation,
    text: str | None,
    sources: Sequence[str],
    form: ReplyForm | None = None,
) -> None:
    """Answer one question and write the answer to stdout.

    Args:
        invocation: The call, with its settings.
        text: The question from the command line. Text on stdin is put before it, or is the
            question if this is None.
        sources: The pictures, in order; `-` is the picture on stdin.
        form: What the answer must be; None leaves it free.

    Raises:
        IdeficsError: For any error that the user can fix. Most are found before the weights are
            loaded.
        CutError: If the answer was cut before it had its form.
    """
    if invocation.settings.dry_run:
        show_plan(invocation, plan_for(invocation))
        return
    request = _request(invocation, text, sources)
    if form is not None:
        request = form.applied_to(request)
    # A bad picture is reported before the plan, which takes seconds to probe the machine.
    _check_images(invocation, request.attachments)
    plan = _answering_plan(invocation, request)
    clock = invocation.services.clock
    started = clock()
    with opened_engine(invocation, plan) as engine:
        loaded = clock()
        prepared = engine.prepare(request)
        times = _Times(loaded - started, clock() - loaded)
        finish, is_empty = _respond(invocation, engine, prepared, times)
    if form is not None and finish == "length":
        raise form.cut_error(request.sampling.max_new_tokens)
    _note_end(invocation, request, finish, is_empty=is_empty)


def show_plan(invocation: Invocation, plan: Plan) -> None:
    """Write *plan*, which says what would run and why, to stdout."""
    from idefics_cli.ui.views.plan import render_plan

    if invocation.settings.json:
        invocation.console.json(plan.to_dict())
    else:
        invocation.console.report(render_plan(plan))


def _answering_plan(invocation: Invocation, request: GenerationRequest) -> Plan:
    """Return the plan for *request*, after its warnings are shown."""
    plan = plan_for(invocation)
    if request.mode == "chat" and not plan.spec.chats:
        raise base_model_error(plan.spec.name or plan.spec.repo)
    if request.mode == "complete":
        # A checkpoint whose template is missing or broken still completes raw prompts.
        plan = replace(plan, spec=replace(plan.spec, uses_template=False))
    report_warnings(invocation, plan)
    return plan


def _note_end(
    invocation: Invocation, request: GenerationRequest, finish: Finish, *, is_empty: bool
) -> None:
    if is_empty:
        invocation.console.note("the answer is empty: the model ended it before the first word")
    if finish == "length":
        limit = request.sampling.max_new_tokens
        invocation.console.note(
            f"the answer was cut after {counted(limit, 'token')}; `--max-new-tokens` sets the limit"
        )


def _check_images(invocation: Invocation, attachments: Sequence[Attachment]) -> None:
    """Open the pictures that are files, so that a bad one is found before the model is loaded.

    A note says which page or frame of a file the model sees. Downloads, stdin and the clipboard are
    not checked, because the engine reads them later, and a second read could give another picture.
    JPEGs are decoded at an eighth of their size. That is quick, and finds most defects.

    Raises:
        ImageError: If a picture cannot be opened or is over a limit.
    """
    if not attachments:
        return
    from idefics_cli.images.loader import ImageLoader, shown_part
    from idefics_cli.images.sources import ImageSources

    limits = image_limits(invocation.settings)
    loader = ImageLoader(limits)
    for attachment in attachments:
        source = attachment.source
        if source != STDIN and not is_address(source) and not is_clipboard(source):
            loader.open(attachment, draft_edge=1).close()
            with ImageSources(limits, offline=True, stdin=None).open(source) as stream:
                if part := shown_part(stream):
                    invocation.console.note(f"of `{describe_source(source)}` the model sees {part}")


@dataclass(frozen=True, slots=True)
class _Times:
    load_seconds: float
    prepare_seconds: float


def _request(invocation: Invocation, text: str | None, sources: Sequence[str]) -> GenerationRequest:
    settings = invocation.settings
    if text is not None and not sources:
        _check_is_question(text)
    prompt = _prompt(invocation, text, sources)
    images = [Attachment(source) for source in sources]
    chosen = sampling(settings, default_tokens=ANSWER_TOKENS)
    if chosen.temperature > 0 and chosen.seed is None:
        import secrets

        # The seed is drawn here and not by the engine, so that `--json` can report it.
        chosen = replace(chosen, seed=secrets.randbits(32))
    if settings.raw:
        if settings.system and invocation.resolved.origins["system"].source == "flag":
            raise UsageError(
                "--system does not apply to a raw prompt", hint="write the instruction into PROMPT"
            )
        parts = _raw_parts(prompt, images)
        return GenerationRequest((Message("user", parts),), chosen, "complete")
    turns = [Message("system", (settings.system,))] if settings.system else []
    parts = _chat_parts(invocation, prompt, images)
    return GenerationRequest((*turns, Message("user", parts)), chosen)


def _chat_parts(
    invocation: Invocation, prompt: _Prompt, images: Sequence[Attachment]
) -> tuple[Part, ...]:
    """Return *prompt* with the pictures in place of its marks; pictures without a mark come first.

    Raises:
        PromptError: If the marks that the user typed do not fit the pictures.
    """
    piped = read_tokens(prompt.piped)
    marks = count_tokens(piped)
    if prompt.typed is not None or marks != len(images):
        if marks:
            note = f"`{IMAGE_TOKEN}` from stdin is text, as it does not stand for the pictures"
            invocation.console.note(note)
        piped = (prompt.piped,)
    pieces = (*piped, *read_marks(prompt.typed_after_piped))
    numbers = range(1, len(images) + 1)
    check_marks(pieces, numbers, numbers)
    return _with_images(place_pictures(pieces, numbers), images)


def _raw_parts(prompt: _Prompt, images: Sequence[Attachment]) -> tuple[Part, ...]:
    """Return the raw *prompt* with the pictures in place of its marks.

    Raises:
        PromptError: If a picture has no mark, or a mark no picture.
    """
    pieces = (*read_tokens(prompt.piped), *read_marks(prompt.typed_after_piped))
    numbers = range(1, len(images) + 1)
    tokens = count_tokens(pieces)
    if tokens or not any(n in numbers for n in references(pieces)):
        check_count(tokens, len(images))
    check_marks(pieces, numbers, numbers)
    placement = place_pictures(pieces, numbers)
    if placement.unnamed:
        raise PromptError(
            f"the raw prompt has no place for picture {placement.unnamed[0]}",
            hint=f"write `[{placement.unnamed[0]}]` where it belongs",
        )
    parts = _with_images(placement, images)
    if any(isinstance(part, str) and IMAGE_TOKEN in part for part in parts):
        raise PromptError(
            f"a raw prompt cannot hold `{IMAGE_TOKEN}` as text", hint="leave `--raw` out"
        )
    return parts


def _with_images(placement: PlacedPrompt, images: Sequence[Attachment]) -> tuple[Part, ...]:
    parts = (*placement.unnamed, *placement.in_words(placement.order))
    return tuple(part if isinstance(part, str) else images[part - 1] for part in parts)


@dataclass(frozen=True, slots=True)
class _Prompt:
    """The prompt: the text on stdin, and below it the text of the command line, if there is one."""

    piped: str
    typed: str | None

    @property
    def typed_after_piped(self) -> str:
        return "\n".join(["", self.typed]) if self.piped and self.typed else self.typed or ""


def _prompt(invocation: Invocation, text: str | None, sources: Sequence[str]) -> _Prompt:
    stdin = invocation.services.stdin
    piped = ""
    if STDIN in sources:
        _check_stdin_image(invocation, sources)
    else:
        patience = None if text is None else invocation.settings.timeout_seconds
        piped = piped_text(stdin, invocation.console, silence_seconds=patience)
        if text is not None and piped:
            _tell_if_list(invocation, piped)
    prompt = "\n".join(part for part in (piped, text) if part)
    check_prompt(prompt, hint="`idefics ask 'What is in the picture?' -i PICTURE`")
    return _Prompt(piped, text)


def _tell_if_list(invocation: Invocation, piped: str) -> None:
    """Tell the user if stdin, which became a part of the prompt, is a list of files.

    This happens in a shell loop `while read`: the command reads the rest of the list of the loop.
    """
    names = [name.strip() for name in re.split("[\t,;]", piped.partition("\n")[0])]
    if any(0 < len(n) < 256 and "\0" not in n and os.path.isfile(n) for n in names):
        lines = counted(piped.count("\n") + 1, "line")
        invocation.console.note(
            f"the prompt begins with {lines} from stdin, a list of files; "
            "in a loop such as `while read`, add `</dev/null`"
        )


def _check_is_question(text: str) -> None:
    """Refuse a question that is the name of a file; the model would make up what is in it."""
    if len(text) < 256 and "\0" not in text and os.path.isfile(text):
        raise UsageError(
            f"`{text}` is a file, not a question",
            hint=f'`idefics ask "What is in it?" -i {shlex.quote(text)}`',
        )


def _check_stdin_image(invocation: Invocation, sources: Sequence[str]) -> None:
    stdin = invocation.services.stdin
    if list(sources).count(STDIN) > 1:
        raise UsageError("`-i -` is given twice, but stdin holds one picture")
    if stdin is None or stdin.closed or stdin.isatty():
        raise UsageError(
            "`-i -` needs a picture on stdin", hint="`idefics ask PROMPT -i - <PICTURE`"
        )


def _respond(
    invocation: Invocation, engine: Engine, prepared: Prepared, times: _Times
) -> tuple[Finish, bool]:
    """Write the answer to stdout; return how it ended, and whether it is empty."""
    console, stream = invocation.console, invocation.settings.stream
    is_free = prepared.request.constraint is None
    # An answer with a form is written when it is complete, because a cut one is an error.
    streams = console.is_terminal and is_free if stream is None else stream
    if not invocation.settings.json and streams:
        from idefics_cli.ui.terminal.stream import show_stream

        texts: list[str] = []
        chunks = engine.stream(prepared)
        finish = show_stream(console, _recorded(chunks, texts)).finish
        if finish is None:
            raise RuntimeError("the engine ended a stream without a reason")
        return finish, not "".join(texts).strip()
    with console.status("answering"):
        completion = engine.complete([prepared])[0]
    if invocation.settings.json:
        console.json(_record(engine, prepared.request, completion, times))
    elif is_free or completion.finish != "length":
        console.line(completion.text)
    else:
        console.tell(completion.text)
    return completion.finish, not completion.text.strip()


def _recorded(chunks: Iterator[TokenChunk], texts: list[str]) -> Iterator[TokenChunk]:
    """Yield *chunks*, and add their texts to *texts*."""
    for chunk in chunks:
        texts.append(chunk.text)
        yield chunk


def _record(
    engine: Engine, request: GenerationRequest, completion: Completion, times: _Times
) -> dict[str, object]:
    spec, seconds = engine.spec, completion.decode_seconds
    is_cut = completion.finish == "length" and request.constraint is not None
    # The beginning of a JSON text is no text that a program could read.
    text = {"text": None, "partial": completion.text} if is_cut else {"text": completion.text}
    return {
        **text,
        "finish": completion.finish,
        "prompt_tokens": completion.prompt_tokens,
        "reused_tokens": completion.reused_tokens,
        "new_tokens": completion.new_tokens,
        "token_ids": list(completion.token_ids),
        "tokens_per_second": round(completion.new_tokens / seconds, 2) if seconds > 0 else None,
        "timings": {
            "load_seconds": round(times.load_seconds, 4),
            "prepare_seconds": round(times.prepare_seconds, 4),
            "prefill_seconds": round(completion.prefill_seconds, 4),
            "decode_seconds": round(seconds, 4),
        },
        "model": spec.name or spec.repo,
        "repo": spec.repo,
        "revision": engine.revision,
        "images": [recorded_source(attachment.source) for attachment in request.attachments],
        "device": spec.device,
        "dtype": spec.dtype,
        "quantization": spec.quantization,
        "attention": spec.attention,
        "temperature": request.sampling.temperature,
        "seed": request.sampling.seed,
        "version": __version__,
    }
