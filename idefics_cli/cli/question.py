"""The request of a single question, from the command line and stdin."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from idefics_cli.cli.invocation import Invocation
from idefics_cli.cli.model_choice import check_prompt, sampling
from idefics_cli.cli.stdin import piped_text
from idefics_cli.config.settings import ANSWER_TOKENS
from idefics_cli.core.errors import PromptError, UsageError
from idefics_cli.core.sources import STDIN
from idefics_cli.core.types import Attachment, GenerationRequest, Message, Mode, Part, Sampling
from idefics_cli.core.units import counted
from idefics_cli.models.families.few_shot import Shot, with_shots
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

if TYPE_CHECKING:
    from idefics_cli.cli.examples import Example
    from idefics_cli.engine.schema.form import ReplyForm


@dataclass(frozen=True, slots=True)
class AskedQuestion:
    """What the command line asks.

    Attributes:
        text: The question. Text on stdin is put before it, or is the question if this is None.
        sources: The pictures, in order; `-` is the picture on stdin.
        form: What the answer must be; None leaves it free.
        examples: Pictures with their answers, which precede the question.
        banned: Words that the answer must not hold.
    """

    text: str | None
    sources: Sequence[str]
    form: ReplyForm | None = None
    examples: Sequence[Example] = ()
    banned: tuple[str, ...] = ()

    @property
    def images(self) -> tuple[Attachment, ...]:
        """The pictures, in order."""
        return tuple(map(Attachment, self.sources))


def read_question(invocation: Invocation, question: AskedQuestion) -> GenerationRequest:
    """Return the request that *question*, the settings and stdin make.

    Raises:
        UsageError: If the question, its pictures and its examples do not fit each other.
    """
    settings, text = invocation.settings, question.text
    images, examples = question.images, question.examples
    if examples and len(images) != 1:
        raise UsageError(
            f"an example shows one picture, and the question has {len(images)}",
            hint="give one `-i` with `--example`",
        )
    if text is not None and not images:
        _check_is_question(text)
    prompt = _prompt(invocation, text, question.sources)
    if not images and not prompt.piped:
        _tell_of_no_picture(invocation)
    chosen = _with_seed(sampling(settings, default_tokens=ANSWER_TOKENS))
    mode: Mode = "complete" if settings.raw else "chat"
    parts = _parts(invocation, prompt, images)
    shots = [Shot(_parts(invocation, prompt, [each.picture]), each.text) for each in examples]
    messages = with_shots(shots, parts, mode)
    if settings.system and not settings.raw:
        messages = (Message("system", (settings.system,)), *messages)
    request = GenerationRequest(messages, chosen, mode, banned=question.banned)
    return question.form.applied_to(request) if question.form else request


def _parts(
    invocation: Invocation, prompt: _Prompt, images: Sequence[Attachment]
) -> tuple[Part, ...]:
    if not invocation.settings.raw:
        return _chat_parts(invocation, prompt, images)
    if invocation.settings.system and invocation.resolved.origins["system"].source == "flag":
        raise UsageError(
            "--system does not apply to a raw prompt", hint="write the instruction into PROMPT"
        )
    return _raw_parts(prompt, images)


def _with_seed(chosen: Sampling) -> Sampling:
    if chosen.temperature == 0 or chosen.seed is not None:
        return chosen
    import secrets

    # The seed is drawn here and not by the engine, so that `--json` can report it.
    return replace(chosen, seed=secrets.randbits(32))


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


def _tell_of_no_picture(invocation: Invocation) -> None:
    """Tell a user at a terminal that the question has no picture: the model makes one up."""
    console, settings = invocation.console, invocation.settings
    if console.is_terminal and console.err.isatty() and not (settings.json or settings.dry_run):
        console.note("no picture was given, so the model sees none; `-i PICTURE` gives one")


def _check_stdin_image(invocation: Invocation, sources: Sequence[str]) -> None:
    stdin = invocation.services.stdin
    if list(sources).count(STDIN) > 1:
        raise UsageError("`-i -` is given twice, but stdin holds one picture")
    if stdin is None or stdin.closed or stdin.isatty():
        raise UsageError(
            "`-i -` needs a picture on stdin", hint="`idefics ask PROMPT -i - <PICTURE`"
        )
