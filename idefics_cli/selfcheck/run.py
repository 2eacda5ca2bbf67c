"""The self-check: each way answers the same questions, and each reply is judged."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

from idefics_cli.core.errors import IdeficsError, MemoryLimitError
from idefics_cli.core.types import Completion, LoadSpec
from idefics_cli.engine.factory import engine_factory
from idefics_cli.engine.protocol import Engine
from idefics_cli.hardware.machine import Machine
from idefics_cli.models.hub.facts import ModelFacts
from idefics_cli.models.kernels.table import KERNELS
from idefics_cli.selfcheck.asking import (
    CHAT,
    MANNERS,
    KnownPicture,
    KnownRequest,
    Manner,
    Replies,
    ask_one_by_one,
    caption_requests,
    chat_requests,
)
from idefics_cli.selfcheck.results import MannerResult, Status, WayResult
from idefics_cli.selfcheck.ways import Way, list_ways, reference_way

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

# A way (see `Way`) passes if at least this share of its replies is right. A way that computes
# correctly gives only right replies about these pictures; a quantized model may give a wrong one,
# because of rounding.
_SHARE, _QUANTIZED_SHARE = 0.97, 0.9
_CHATS = 3
# The logits of only this many pictures are compared, because each comparison costs a prefill.
_COMPARED = 3
_LOGITS = "logits"

Say = Callable[[str, float], None]
Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Examination:
    """What a self-check needs.

    Attributes:
        facts: The built-in model.
        machine: This machine.
        pictures: Pictures with known answers.
        device: The device to check, as in `PlanChoices`; None checks all.
        open_engine: Loads the model of a spec.
        clock: Returns seconds.
        say: Called with the way that begins, and the share of the ways that are done.
    """

    facts: ModelFacts
    machine: Machine
    pictures: Sequence[KnownPicture]
    device: str | None = None
    open_engine: Callable[[LoadSpec], Engine] = field(
        default_factory=lambda: lambda spec: engine_factory(spec)()
    )
    clock: Callable[[], float] = time.perf_counter
    say: Say = lambda text, share: None


@dataclass(frozen=True, slots=True)
class _Reference:
    """The results of the reference: tokens and logits for each request, and its time."""

    captions: Sequence[Tokens]
    turns: Sequence[Tokens]
    logits: Sequence[Sequence[Tensor]]
    seconds: float


def check_ways(examination: Examination) -> Iterator[WayResult]:
    """Yield the result of the reference, and of every way of the machine.

    If the reference is wrong, nothing else can be judged, and its result is the only one.
    """
    ways = list(list_ways(examination.facts, examination.machine, device=examination.device))
    plain = reference_way(examination.facts, examination.machine)
    examination.say(plain.name, 0)
    result, reference = _ask_reference(plain, examination)
    yield result
    if reference is None:
        return
    for number, way in enumerate(ways, start=1):
        examination.say(way.name, number / (len(ways) + 1))
        yield _check(way, examination, reference)


def _ask_reference(way: Way, examination: Examination) -> tuple[WayResult, _Reference | None]:
    captions = caption_requests(examination.pictures)
    turns = chat_requests(examination.pictures[:_CHATS])
    manners, tokens = [], []
    try:
        with examination.open_engine(way.spec) as engine:
            ask_one_by_one(engine, captions[:1])  # the first call is slower than the others
            for name, asked in (("one by one", captions), (CHAT, turns)):
                replies, seconds = _timed(ask_one_by_one, engine, asked, examination.clock)
                manners.append(_judge(name, asked, replies, seconds, None))
                tokens.append([r.token_ids if isinstance(r, Completion) else () for r in replies])
            logits = _logits(engine, captions)
    except IdeficsError as error:
        return WayResult(way, "wrong", str(error)), None
    wrong = next((manner for manner in manners if manner.difference), None)
    if wrong is not None:
        return WayResult(way, "wrong", str(wrong.difference), tuple(manners)), None
    reference = _Reference(tokens[0], tokens[1], logits, manners[0].seconds)
    return WayResult(way, "right", "", tuple(manners), pace=1.0), reference


def _check(way: Way, examination: Examination, reference: _Reference) -> WayResult:
    if way.refusal is not None:
        return WayResult(way, "refused", way.refusal)
    result = _ask_way(way, examination, reference)
    if result.status != "wrong" or (way.spec.quantization == "none" and not way.spec.kernels.names):
        return result
    return replace(result, culprit=_find_culprit(way, result, examination, reference))


def _ask_way(
    way: Way,
    examination: Examination,
    reference: _Reference,
    *,
    only: Sequence[str] = (_LOGITS, *MANNERS, CHAT),
) -> WayResult:
    """Ask *way* in the manners *only*, and judge its replies."""
    manners: list[MannerResult] = []
    problems: list[str] = []
    is_loaded = False
    try:
        with _warnings_of_engine() as warned, examination.open_engine(way.spec) as engine:
            is_loaded = True
            ask_one_by_one(engine, caption_requests(examination.pictures)[:1])
            for name in only:
                judged, found = _ask_manner(name, engine, way.spec, examination, reference)
                manners.append(judged)
                problems += found
            # A kernel that no layer uses is the cause of some warnings.
            problems += [*_unused_kernels(engine, way.spec), *warned, *_graph_failures(engine)]
    except MemoryLimitError as error:
        return WayResult(way, "refused", str(error), tuple(manners))
    except Exception as error:  # of a driver or a kernel; it belongs to the way
        # An IdeficsError before the model is loaded means that the way cannot run here. Every other
        # error is a fault of the way.
        is_known = isinstance(error, IdeficsError)
        reason = str(error) if is_known else f"{type(error).__name__}: {error}".splitlines()[0]
        status: Status = "refused" if is_known and not is_loaded else "wrong"
        return WayResult(way, status, reason, tuple(manners))
    first = next((m for m in manners if m.manner == "one by one"), None)
    pace = first.seconds / reference.seconds if first and reference.seconds else None
    if problems:
        return WayResult(way, "wrong", problems[0], tuple(manners), pace=pace)
    return WayResult(way, "right", "", tuple(manners), pace=pace)


def _ask_manner(
    name: str,
    engine: Engine,
    spec: LoadSpec,
    examination: Examination,
    reference: _Reference,
) -> tuple[MannerResult, list[str]]:
    """Ask in one manner; return the result, and what is wrong with it."""
    captions, problems = caption_requests(examination.pictures), []
    if name == _LOGITS:
        judged = _judge_logits(engine, spec, captions, reference, examination.clock)
        share = 1.0
    else:
        is_exact = spec.dtype == "float32" and spec.quantization == "none"
        share = _SHARE if spec.quantization == "none" else _QUANTIZED_SHARE
        turns = chat_requests(examination.pictures[:_CHATS])
        asked, expected = (captions, reference.captions)
        if name == CHAT:
            asked, expected = (turns, reference.turns)
        manner = MANNERS.get(name, ask_one_by_one)
        replies, seconds = _timed(manner, engine, asked, examination.clock)
        judged = _judge(name, asked, replies, seconds, expected if is_exact else None)
        problems = _reuse_problem(replies) if name == CHAT else []
    if judged.right < share * judged.total:
        told = f"{name}: {judged.right} of {judged.total} right; {judged.difference}"
        problems = [told, *problems]
    return judged, problems


def _find_culprit(
    way: Way, result: WayResult, examination: Examination, reference: _Reference
) -> str | None:
    """Return the kernel without which *way* is right, or None."""
    failed = [manner.manner for manner in result.manners if manner.difference] or ["batch"]
    kernels = way.spec.kernels
    layers = (kernels.text, kernels.head, kernels.connector, kernels.vision, kernels.mlp)
    parts = (*layers, kernels.patches, kernels.norm, kernels.step)
    # Only the first kernel of each part is tried, because it computes every layer that it can.
    leading = [names[0] for names in parts if names]
    if kernels.attention is not None:
        leading.append(kernels.attention)
    for name in dict.fromkeys(leading):
        other = way.without_kernel(name)
        if other is None:
            continue
        examination.say(f"{way.name}: without {name}", 0.5)
        if _ask_way(other, examination, reference, only=failed[:1]).status == "right":
            return name
    return None


def _timed(
    manner: Manner,
    engine: Engine,
    asked: Sequence[KnownRequest],
    clock: Callable[[], float],
) -> tuple[Replies, float]:
    begin = clock()
    replies = manner(engine, asked)
    return replies, clock() - begin


def _judge(
    manner: str,
    asked: Sequence[KnownRequest],
    replies: Replies,
    seconds: float,
    expected: Sequence[Tokens] | None,
) -> MannerResult:
    """Compare *replies* with the truth and, if *expected* is given, with its tokens."""
    differences = []
    for number, (each, reply) in enumerate(zip(asked, replies, strict=True)):
        if isinstance(reply, Exception):
            differences.append(f"{type(reply).__name__}: {reply}")
        elif reply.text != each.answer:
            differences.append(f"{reply.text!r}, not {each.answer!r}")
        elif expected is not None and reply.token_ids != expected[number]:
            differences.append(f"{each.answer!r} has other tokens than the reference")
    right = len(asked) - len(differences)
    return MannerResult(manner, right, len(asked), next(iter(differences), None), seconds)


def _logits(engine: Engine, asked: Sequence[KnownRequest]) -> list[Sequence[Tensor]]:
    """Return the logits of the first requests; none if the engine does not run in this process."""
    from idefics_cli.engine.local.engine import LocalEngine
    from idefics_cli.selfcheck.scores import prompt_scores

    if not isinstance(engine, LocalEngine):
        return []
    return [prompt_scores(engine, engine.prepare(each.request)) for each in asked[:_COMPARED]]


def _judge_logits(
    engine: Engine,
    spec: LoadSpec,
    asked: Sequence[KnownRequest],
    reference: _Reference,
    clock: Callable[[], float],
) -> MannerResult:
    """Compare logits with the reference. They show errors that are too small to change a word."""
    from idefics_cli.selfcheck.scores import allowed_error, largest_error

    begin, allowed = clock(), allowed_error(spec)
    given = _logits(engine, asked)
    errors = [largest_error(*pair) for pair in zip(given, reference.logits, strict=False)]
    wrong = [error for error in errors if not error <= allowed]
    difference = f"off by {wrong[0]:.2g}, and {allowed:g} is allowed" if wrong else None
    right = len(errors) - len(wrong)
    return MannerResult(_LOGITS, right, len(errors), difference, clock() - begin)


def _reuse_problem(replies: Replies) -> list[str]:
    """Return a problem if no turn of a chat reused the states of the turns before."""
    reused = [r.reused_tokens for r in replies if isinstance(r, Completion)]
    return [] if any(reused) else ["chat: no turn reuses the states of the turns before"]


def _graph_failures(engine: Engine) -> list[str]:
    """Return, in words, why the engine stopped to replay steps, although it raised no error."""
    from idefics_cli.engine.local.engine import LocalEngine

    graphs = engine.inference.graphs if isinstance(engine, LocalEngine) else None
    if graphs is None or graphs.failure is None:
        return []
    return [f"CUDA graphs were given up: {graphs.failure}"]


def _unused_kernels(engine: Engine, spec: LoadSpec) -> list[str]:
    """Return, in words, the kernel of *spec* for the text model, if no layer uses it."""
    from idefics_cli.engine.local.engine import LocalEngine

    if not isinstance(engine, LocalEngine):
        return []
    used = {type(m).__name__ for m in cast("Module", engine.loaded.model).modules()}
    return [
        f"no layer uses the kernel `{name}`"
        for name in spec.kernels.text[:1]
        if not KERNELS[name].smallest_weights and KERNELS[name].path.partition(":")[2] not in used
    ]


@contextmanager
def _warnings_of_engine() -> Iterator[list[str]]:
    """Collect the warnings of the engine: each says that it replaced one method by another."""
    found: list[str] = []

    class _Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger, collector = logging.getLogger("idefics_cli"), _Collector(logging.WARNING)
    logger.addHandler(collector)
    try:
        yield found
    finally:
        logger.removeHandler(collector)
