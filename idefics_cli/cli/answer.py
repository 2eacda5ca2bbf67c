"""One question, one answer: what `ask` and a piped `chat` share."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
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
from idefics_cli.core.errors import UsageError
from idefics_cli.core.types import (
    Attachment,
    Completion,
    Finish,
    GenerationRequest,
    ImageLimits,
    Message,
)
from idefics_cli.engine.protocol import Engine, Prepared
from idefics_cli.models.families.raw_prompt import raw_parts
from idefics_cli.models.hub.registry import base_model_error

if TYPE_CHECKING:
    from idefics_cli.models.planning.plan import Plan

STDIN = "-"


def answer_once(invocation: Invocation, text: str | None, sources: Sequence[str]) -> None:
    """Answer one question and write the answer to stdout.

    Args:
        invocation: The call, with its settings.
        text: The question as an argument; text on stdin precedes it, or is the question.
        sources: The pictures, in order; `-` is the one on stdin.

    Raises:
        IdeficsError: Anything that the user can mend, before a weight is loaded if possible.
    """
    if invocation.settings.dry_run:
        show_plan(invocation, plan_for(invocation))
        return
    request = _request(invocation, text, sources)
    # First, as it is fast: looking at the machine takes seconds.
    check_images(request.attachments, image_limits(invocation.settings))
    plan = plan_for(invocation)
    if request.mode == "chat" and not plan.spec.chats:
        raise base_model_error(plan.spec.name or plan.spec.repo)
    report_warnings(invocation, plan)
    clock = invocation.services.clock
    started = clock()
    with opened_engine(invocation, plan) as engine:
        loaded = clock()
        prepared = engine.prepare(request)
        times = _Times(loaded - started, clock() - loaded)
        finish = _respond(invocation, engine, prepared, times)
    if finish == "length":
        limit = request.sampling.max_new_tokens
        invocation.console.note(
            f"the answer was cut after {limit} tokens; `--max-new-tokens` sets the limit"
        )


def show_plan(invocation: Invocation, plan: Plan) -> None:
    """Write what would run, and why, to stdout."""
    from idefics_cli.ui.views.plan import plan_record, render_plan

    if invocation.settings.json:
        invocation.console.json(plan_record(plan))
    else:
        invocation.console.report(render_plan(plan))


def check_images(attachments: Sequence[Attachment], limits: ImageLimits) -> None:
    """Open the pictures that are here, so that a bad one fails before the model loads.

    Downloads, stdin and the clipboard are left to the engine: they would be read twice, and
    might differ. JPEGs are decoded at an eighth of their size, which is enough to tell.

    Raises:
        ImageError: If one cannot be opened or is over a limit.
    """
    if not attachments:
        return
    from idefics_cli.core.sources import is_address, is_clipboard
    from idefics_cli.images.loader import ImageLoader

    loader = ImageLoader(limits)
    for attachment in attachments:
        source = attachment.source
        if source != STDIN and not is_address(source) and not is_clipboard(source):
            loader.open(attachment, draft_edge=1).close()


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

        # Drawn here, so that `--json` tells how to get the same answer again.
        chosen = replace(chosen, seed=secrets.randbits(32))
    if settings.raw:
        if settings.system and invocation.resolved.origins["system"].source == "flag":
            raise UsageError("--system has no place in a raw prompt", hint="write it into PROMPT")
        return GenerationRequest((Message("user", raw_parts(prompt, images)),), chosen, "complete")
    turns = [Message("system", (settings.system,))] if settings.system else []
    return GenerationRequest((*turns, Message("user", (*images, prompt))), chosen)


def _prompt(invocation: Invocation, text: str | None, sources: Sequence[str]) -> str:
    stdin = invocation.services.stdin
    piped = ""
    if STDIN in sources:
        _check_stdin_image(invocation, sources)
    else:
        patience = None if text is None else invocation.settings.timeout_seconds
        piped = piped_text(stdin, invocation.console, silence_seconds=patience)
    prompt = "\n".join(part for part in (piped, text) if part)
    check_prompt(prompt, hint="`idefics ask 'What is in the picture?' -i PICTURE`")
    return prompt


def _check_is_question(text: str) -> None:
    """Refuse a question that is the name of a picture: the model would invent what is in it."""
    if len(text) < 256 and "\0" not in text and os.path.isfile(text):
        raise UsageError(
            f"`{text}` is a file, not a question",
            hint=f'`idefics ask "What is in it?" -i {shlex.quote(text)}`',
        )


def _check_stdin_image(invocation: Invocation, sources: Sequence[str]) -> None:
    stdin = invocation.services.stdin
    if list(sources).count(STDIN) > 1:
        raise UsageError("`-i -` is given twice, and stdin holds one picture")
    if stdin is None or stdin.closed or stdin.isatty():
        raise UsageError(
            "`-i -` needs a picture on stdin", hint="`idefics ask PROMPT -i - <PICTURE`"
        )


def _respond(invocation: Invocation, engine: Engine, prepared: Prepared, times: _Times) -> Finish:
    console, stream = invocation.console, invocation.settings.stream
    if not invocation.settings.json and (console.is_terminal if stream is None else stream):
        from idefics_cli.ui.terminal.stream import show_stream

        finish = show_stream(console, engine.stream(prepared)).finish
        if finish is None:
            raise RuntimeError("the engine ended a stream without a reason")
        return finish
    with console.status("answering"):
        completion = engine.complete([prepared])[0]
    if invocation.settings.json:
        console.json(_record(engine, prepared.request, completion, times))
    else:
        console.line(completion.text)
    return completion.finish


def _record(
    engine: Engine, request: GenerationRequest, completion: Completion, times: _Times
) -> dict[str, object]:
    from idefics_cli.core.sources import describe_source

    spec, seconds = engine.spec, completion.decode_seconds
    return {
        "text": completion.text,
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
        "images": [describe_source(attachment.source) for attachment in request.attachments],
        "device": spec.device,
        "dtype": spec.dtype,
        "quantization": spec.quantization,
        "attention": spec.attention,
        "temperature": request.sampling.temperature,
        "seed": request.sampling.seed,
        "version": __version__,
    }
