"""The answer to a single question, for `ask` and for `chat` in a pipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from idefics_cli import __version__
from idefics_cli.cli.invocation import Invocation
from idefics_cli.cli.model_choice import (
    opened_engine,
    plan_for,
    report_warnings,
)
from idefics_cli.cli.pictures import is_file, read_pictures
from idefics_cli.cli.question import AskedQuestion, read_question
from idefics_cli.cli.server_choice import check_sight, served_spec
from idefics_cli.core.sources import (
    recorded_source,
)
from idefics_cli.core.types import (
    Attachment,
    Completion,
    Finish,
    GenerationRequest,
    LoadSpec,
    TokenChunk,
)
from idefics_cli.core.units import counted
from idefics_cli.engine.protocol import Engine, Prepared
from idefics_cli.models.hub.registry import base_model_error

if TYPE_CHECKING:
    from idefics_cli.models.planning.plan import Plan

# A note warns if the probabilities of all choices together are below this.
_UNLIKELY = 0.1


def answer_once(invocation: Invocation, question: AskedQuestion) -> None:
    """Answer one question and write the answer to stdout.

    Args:
        invocation: The call, with its settings.
        question: The question of the command line.

    Raises:
        IdeficsError: For any error that the user can fix. Most are found before the weights are
            loaded.
        CutError: If the answer was cut before it had its form.
    """
    if invocation.settings.dry_run:
        # Nothing is read from the network, stdin or the clipboard, as in `caption --dry-run`.
        read_pictures(invocation, [each for each in question.images if is_file(each.source)])
        if invocation.settings.server is not None:
            show_server(invocation, served_spec(invocation))
        else:
            show_plan(invocation, plan_for(invocation))
        return
    request = read_question(invocation, question)
    # A bad picture is reported before the plan, which takes seconds to probe the machine.
    open_image = read_pictures(invocation, question.images)
    spec = _answering_spec(invocation, request)
    clock = invocation.services.clock
    started = clock()
    with opened_engine(invocation, spec) as engine:
        loaded = clock()
        prepared = engine.prepare(request, open_image=open_image)
        times = _Times(loaded - started, clock() - loaded)
        finish, is_empty = _respond(invocation, engine, prepared, times, question.images)
    if question.form is not None and finish == "length":
        raise question.form.cut_error(request.sampling.max_new_tokens)
    _note_end(invocation, request, finish, is_empty=is_empty)


def show_plan(invocation: Invocation, plan: Plan) -> None:
    """Write *plan*, which says what would run and why, to stdout."""
    from idefics_cli.ui.views.plan import render_plan

    if invocation.settings.json:
        invocation.console.json(plan.to_dict())
    else:
        invocation.console.report(render_plan(plan))


def show_server(invocation: Invocation, spec: LoadSpec) -> None:
    """Write which model of which server would answer to stdout."""
    assert spec.server is not None
    if invocation.settings.json:
        invocation.console.json({"model": spec.name, "server": spec.server.url})
    else:
        invocation.console.line(f"{spec.name} at {spec.server.url} answers")


def _answering_spec(invocation: Invocation, request: GenerationRequest) -> LoadSpec:
    """Return the model for *request*, after the warnings of its plan are shown."""
    if invocation.settings.server is not None:
        spec = served_spec(invocation)
        if request.mode == "chat" and not spec.chats:
            raise base_model_error(spec.name)
        if request.attachments:
            check_sight(invocation, spec)
        return spec
    plan = plan_for(invocation)
    if request.mode == "chat" and not plan.spec.chats:
        raise base_model_error(plan.spec.name or plan.spec.repo)
    if request.mode == "complete":
        # A checkpoint whose template is missing or broken still completes raw prompts.
        plan = replace(plan, spec=replace(plan.spec, uses_template=False))
    report_warnings(invocation, plan)
    return plan.spec


def _note_end(
    invocation: Invocation, request: GenerationRequest, finish: Finish, *, is_empty: bool
) -> None:
    if finish == "length":
        limit = counted(request.sampling.max_new_tokens, "token")
        early = ", before its first word" if is_empty else ""
        invocation.console.note(
            f"the answer was cut after {limit}{early}; `--max-new-tokens` sets the limit"
        )
    elif is_empty:
        invocation.console.note("the answer is empty: the model ended it before the first word")


@dataclass(frozen=True, slots=True)
class _Times:
    load_seconds: float
    prepare_seconds: float


def _respond(
    invocation: Invocation,
    engine: Engine,
    prepared: Prepared,
    times: _Times,
    images: Sequence[Attachment],
) -> tuple[Finish, bool]:
    """Write the answer to stdout; return how it ended, and whether it is empty."""
    console, stream = invocation.console, invocation.settings.stream
    constraint = prepared.request.constraint
    is_free = constraint is None
    # An answer with a constraint, such as a JSON schema, is not streamed by default: if it is cut
    # off, it is an error and must not be on stdout.
    streams = console.is_terminal and is_free if stream is None else stream
    streams = streams and not (constraint and constraint.kind == "choice")
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
        console.json(_record(engine, prepared.request, completion, times, images))
    elif is_free or completion.finish != "length":
        console.line(completion.text)
    else:
        console.tell(completion.text)
    if completion.choice and completion.choice.mass < _UNLIKELY:
        console.note(
            "the model would hardly give any of these answers: "
            f"their probability is {completion.choice.mass:.1%}"
        )
    return completion.finish, not completion.text.strip()


def _recorded(chunks: Iterator[TokenChunk], texts: list[str]) -> Iterator[TokenChunk]:
    """Yield *chunks*, and add their texts to *texts*."""
    for chunk in chunks:
        texts.append(chunk.text)
        yield chunk


def _text(request: GenerationRequest, completion: Completion) -> dict[str, object]:
    if (choice := completion.choice) is not None:
        shares = dict(choice.probabilities)
        return {"text": completion.text, "probabilities": shares, "mass": choice.mass}
    if completion.finish == "length" and request.constraint is not None:
        # The answer was cut off, so it lacks the form that a program expects: half a JSON text
        # cannot be parsed.
        return {"text": None, "partial": completion.text}
    return {"text": completion.text}


def _place(spec: LoadSpec) -> dict[str, object]:
    if spec.server is not None:
        return {"server": spec.server.url}
    return {
        "device": spec.device,
        "dtype": spec.dtype,
        "quantization": spec.quantization,
        "attention": spec.attention,
    }


def _record(
    engine: Engine,
    request: GenerationRequest,
    completion: Completion,
    times: _Times,
    images: Sequence[Attachment],
) -> dict[str, object]:
    spec, seconds = engine.spec, completion.decode_seconds
    return {
        **_text(request, completion),
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
        **({} if spec.adapter is None else {"adapter": spec.adapter.name}),
        "revision": engine.revision,
        "images": [recorded_source(attachment.source) for attachment in images],
        **_place(spec),
        "temperature": request.sampling.temperature,
        "seed": request.sampling.seed,
        "version": __version__,
    }
