"""The inputs of a captioning run: the pictures, and the questions that are asked about each."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from idefics_cli.cli.commands.caption.outputs import chosen_wording
from idefics_cli.cli.invocation import Invocation
from idefics_cli.cli.model_choice import check_prompt, image_limits, sampling
from idefics_cli.cli.pictures import takes_videos
from idefics_cli.cli.stdin import MAX_TEXT_BYTES, piped_text, tell_if_silent
from idefics_cli.config.settings import CAPTION_TOKENS
from idefics_cli.core.errors import InputError, PromptError, UsageError
from idefics_cli.core.sources import STDIN, kind_of_source
from idefics_cli.core.text import abbreviated
from idefics_cli.core.types import DECODING_BYTES, Attachment, LoadSpec, SourceKind
from idefics_cli.models.families.spec import IMAGE_TOKEN

if TYPE_CHECKING:
    from idefics_cli.caption.inputs.discover import Listing
    from idefics_cli.caption.job import CaptionJob, CaptionQuestion
    from idefics_cli.caption.output import CaptionOutput
    from idefics_cli.cli.examples import Example
    from idefics_cli.config.settings import Settings
    from idefics_cli.engine.schema.form import ReplyForm
    from idefics_cli.models.planning.plan import Need, Plan


# Sources of one picture that only this process can read, and their names in messages.
_FILELESS: Mapping[SourceKind, str] = MappingProxyType(
    {"stdin": "stdin", "clipboard": "the clipboard"}
)


@dataclass(frozen=True, slots=True)
class Inputs:
    """The arguments of the command that are not settings.

    Attributes:
        paths: Paths of pictures.
        lists: Paths of lists of pictures.
        null: Whether each path in the lists ends with NUL.
        prompt_file: Path of a file with the prompt.
        asked: Named questions, each of the form `NAME=QUESTION`.
    """

    paths: tuple[str, ...]
    lists: tuple[str, ...]
    null: bool
    prompt_file: str | None
    asked: tuple[str, ...]

    def check(self, invocation: Invocation) -> None:
        """Check that the arguments do not contradict each other.

        Raises:
            UsageError: If there is no picture, or two arguments read stdin or give the prompt.
        """
        if not self.paths and not self.lists:
            raise UsageError(
                "no pictures are given",
                hint="`idefics caption photos/ -r`; `--filelist FILE` takes a list of them",
            )
        if self.null and not self.lists:
            raise UsageError(
                "`--null` is for a list",
                hint="`find photos -name '*.jpg' -print0 | idefics caption --filelist - --null`",
            )
        self._check_prompts(invocation)
        self._check_stdin(invocation)

    @property
    def fileless(self) -> str | None:
        """What the first picture comes from that is not in a file; None if all are in files."""
        kinds = (kind_of_source(source) for source in self.paths)
        return next((_FILELESS[kind] for kind in kinds if kind in _FILELESS), None)

    def _check_prompts(self, invocation: Invocation) -> None:
        is_flag = invocation.resolved.origins["prompt"].source == "flag"
        if is_flag and self.prompt_file is not None:
            raise UsageError("--prompt and --prompt-file exclude each other")
        if self.asked and (is_flag or self.prompt_file is not None):
            flag = "--prompt" if is_flag else "--prompt-file"
            raise UsageError(
                f"--ask and {flag} exclude each other",
                hint='`--ask caption="…"` asks for a caption too',
            )

    def _check_stdin(self, invocation: Invocation) -> None:
        readers = {
            "`-`": STDIN in self.paths,
            "`--filelist -`": STDIN in self.lists,
            "`--prompt-file -`": self.prompt_file == STDIN,
        }
        taken = [name for name, takes in readers.items() if takes]
        if len(taken) > 1 or self.lists.count(STDIN) > 1:
            raise UsageError(f"{taken[0]} and {taken[-1]} cannot both read stdin")
        stdin = invocation.services.stdin
        if taken and (stdin is None or stdin.closed or stdin.isatty()):
            raise _nothing_piped(taken[0])

    def questions(self, invocation: Invocation) -> tuple[CaptionQuestion, ...]:
        """Return the questions of the user; none means the default prompt of the model.

        Raises:
            UsageError: If the name of a question is not allowed.
            PromptError: If a question is empty or not text.
        """
        from idefics_cli.caption.job import CaptionQuestion, named_questions

        if self.asked:
            questions = named_questions(self.asked)
            for question in questions:
                check_prompt(question.prompt, hint="`--ask` takes text")
                _check_marks(question.prompt)
            return questions
        prompt = invocation.settings.prompt
        if self.prompt_file is not None:
            prompt = _prompt_in(self.prompt_file, invocation)
        if prompt is None:
            return ()
        check_prompt(prompt, hint="leave `--prompt` out for the model's own")
        _check_marks(prompt)
        return (CaptionQuestion(prompt),)

    def listing(
        self,
        invocation: Invocation,
        questions: tuple[CaptionQuestion, ...],
        has_tar: Callable[[str], bool] = lambda path: True,
    ) -> Listing:
        """Return the pictures, each with the columns of its list that *questions* use as fields.

        *has_tar* is that of `discover`.

        Raises:
            ImageError: If there are no pictures.
            UsageError: If a list cannot be read, or a question has an unknown field.
        """
        from idefics_cli.caption.inputs.discover import discover
        from idefics_cli.caption.inputs.lists import all_columns, read_list
        from idefics_cli.caption.inputs.remote import refuse_remote
        from idefics_cli.caption.inputs.tars import sample_columns
        from idefics_cli.caption.inputs.templates import used_fields

        refuse_remote(self.paths if invocation.settings.offline else ())
        stdin = invocation.services.stdin
        if STDIN in self.lists:
            tell_if_silent(stdin, invocation.console, "the list of pictures")
        lists = [read_list(source, stdin, null=self.null) for source in self.lists]
        prompts = [question.prompt for question in questions]
        columns: tuple[str, ...] = ()
        if any("{" in prompt for prompt in prompts):
            columns = sample_columns(self.paths, recursive=invocation.settings.recursive)
        fields = used_fields(prompts, (*all_columns(lists), *columns))
        return discover(
            self.paths,
            recursive=invocation.settings.recursive,
            follow_links=invocation.settings.follow_links,
            lists=lists,
            fields=fields,
            takes_videos=lambda: takes_videos(invocation),
            columns=columns,
            has_tar=has_tar,
        )


# No server is asked more at a time, unless the user says so.
_MOST_AT_SERVER = 16


@dataclass(frozen=True, slots=True)
class CaptionTarget:
    """What captions: a model on this machine, by its plan, or a model of a server.

    Attributes:
        spec: The model.
        plan: How it runs here; None for a server.
    """

    spec: LoadSpec
    plan: Plan | None

    def automatic_batch(self, pictures: int) -> int:
        """Return the number of requests at a time if the user gives none; see `automatic_batch`."""
        if self.plan is None:
            return _MOST_AT_SERVER
        return automatic_batch(self.plan, pictures=pictures)


def caption_job(
    invocation: Invocation,
    listing: Listing,
    questions: tuple[CaptionQuestion, ...],
    target: CaptionTarget,
    output: CaptionOutput,
    form: ReplyForm | None = None,
    examples: Sequence[Example] = (),
) -> CaptionJob:
    """Return the job; without *questions*, it asks the prompt of the adapter, or of the model."""
    from idefics_cli.caption.job import CaptionJob, CaptionQuestion, automatic_readers
    from idefics_cli.hardware.system import count_cores

    settings, spec = invocation.settings, target.spec
    is_folder = output.sink.output == "folder"
    if not questions:
        questions = (CaptionQuestion(_usual_prompt(invocation, spec)),)
    chosen = sampling(settings, default_tokens=CAPTION_TOKENS)
    job = CaptionJob(
        pictures=listing.pictures,
        questions=questions,
        samples=settings.samples,
        mode="chat" if spec.chats else "complete",
        sampling=chosen,
        batch_size=settings.batch_size or target.automatic_batch(1 + len(examples)),
        readers=automatic_readers(spec.device, count_cores()),
        is_batch_automatic=settings.batch_size is None,
        columns=listing.columns,
        text_extension=_text_extension(settings.text_extension),
        captions_folder=str(output.path) if output.path and is_folder else None,
        limits=image_limits(settings),
        form=form,
        wording=chosen_wording(settings),
    )
    return _with_examples(job, examples)


def _usual_prompt(invocation: Invocation, spec: LoadSpec) -> str:
    """Return the prompt that the adapter was trained with, or else that of the model."""
    from idefics_cli.caption.inputs.templates import used_fields
    from idefics_cli.models.hub.registry import default_caption_prompt

    repo = spec.repo if spec.server is None else spec.server.root or spec.repo
    usual = default_caption_prompt(repo, chats=spec.chats)
    own = None if spec.adapter is None else spec.adapter.prompt
    if own is None or own == usual:
        return usual
    _check_marks(own)
    used_fields([own], ())
    invocation.console.note(f"the prompt is that of the adapter: {abbreviated(own)}")
    return own


def _with_examples(job: CaptionJob, examples: Sequence[Example]) -> CaptionJob:
    from idefics_cli.caption.item import CaptionItem

    shown = [
        (CaptionItem(e.source, Attachment(e.source), columns=e.columns), e.picture, e.text)
        for e in examples
    ]
    return replace(job, shots=job.make_shots(shown))


def check_replies(
    settings: Settings, questions: Sequence[CaptionQuestion], form: ReplyForm | None
) -> None:
    """Check that samples differ, and that nothing changes replies that have a *form*.

    Raises:
        UsageError: If not.
    """
    from idefics_cli.caption.job import check_form, check_samples

    check_samples(settings.samples, sampling(settings, default_tokens=CAPTION_TOKENS))
    if form is None:
        return
    check_form(form, questions, settings.samples)
    if form.separator:
        return  # words before and after tags are usual in training data
    changes = {
        "prefix": settings.prefix,
        "suffix": settings.suffix,
        "trigger": settings.trigger,
        "strip_preamble": settings.strip_preamble,
        "on_truncate": settings.on_truncate == "trim",
    }
    for name in (name for name, is_set in changes.items() if is_set):
        flag = "--on-truncate trim" if name == "on_truncate" else f"--{name.replace('_', '-')}"
        raise UsageError(f"{flag} would change answers whose form another option sets")


def _text_extension(given: str | None) -> str:
    from idefics_cli.caption.sinks.base import TEXT_EXTENSION
    from idefics_cli.images.folders import has_picture_name

    if given is None:
        return TEXT_EXTENSION
    extension = f".{given.removeprefix('.')}"
    if not re.fullmatch(r"\.\w+", extension):
        raise UsageError(f"`{given}` is not an extension", hint="`--text-extension .caption`")
    if extension == ".journal":
        raise UsageError("text files cannot have the extension of the journal of a run, `.journal`")
    if has_picture_name(f"a{extension}"):
        raise UsageError(f"text files cannot have the extension of pictures, `{extension}`")
    return extension


def _check_marks(prompt: str) -> None:
    from idefics_cli.models.families.picture_marks import (
        check_marks,
        count_tokens,
        read_marks,
    )

    pieces = read_marks(prompt)
    if (marks := count_tokens(pieces)) > 1:
        raise PromptError(
            f"the prompt has {marks} `{IMAGE_TOKEN}`, and a caption is about one picture",
            hint=f"write one `{IMAGE_TOKEN}`, or none: then the picture comes first",
        )
    check_marks(pieces, (1,), (1,))


def _nothing_piped(taker: str) -> UsageError:
    if taker == "`-`":
        return UsageError("`-` needs a picture on stdin", hint="`idefics caption - <PICTURE`")
    return UsageError(f"{taker} needs text on stdin", hint="pipe it in, or name a file")


def _prompt_in(file: str, invocation: Invocation) -> str:
    if file == STDIN:
        return piped_text(invocation.services.stdin, invocation.console, silence_seconds=None)
    try:
        with open(os.path.expanduser(file), "rb") as stream:
            data = stream.read(MAX_TEXT_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"cannot read the prompt `{file}`: {reason}") from error
    if len(data) > MAX_TEXT_BYTES:
        raise PromptError(f"the prompt `{file}` is longer than {MAX_TEXT_BYTES:,} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 text (byte {error.start + 1})"
        raise InputError(f"the prompt `{file}` is {reason}") from None
    if not text.strip():
        raise InputError(f"the prompt `{file}` is empty")
    return text.removesuffix("\n").removesuffix("\r")


def automatic_batch(plan: Plan, *, pictures: int = 1) -> int:
    """Return the number of pictures to answer at a time, if the user does not choose one.

    Args:
        plan: The plan of the model.
        pictures: Number of pictures of one prompt, those of examples included.
    """
    from idefics_cli.caption.job import automatic_batch_size

    return min(
        automatic_batch_size(
            plan.spec.device,
            plan.facts.parameters,
            spare_bytes=need.usable - need.total - _decoding_bytes(need.device),
            picture_bytes=pictures * _picture_bytes(need),
            most_waiting=_most_waiting(plan) if plan.spec.device.startswith("cuda") else 1,
        )
        for need in plan.needs
    )


def _decoding_bytes(device: str) -> int:
    """Return how much memory of *device* the decoding of pictures takes."""
    return 0 if device.startswith("cuda") else DECODING_BYTES


def _picture_bytes(need: Need) -> int:
    """Return how much memory one more picture takes on the device of *need*."""
    if need.picture is not None:
        return need.picture
    return need.kv_cache + need.working - _runtime_bytes(need.device)


def _most_waiting(plan: Plan) -> int:
    """Return how many pictures may be answered at a time, by the spare RAM.

    As many preprocessed pictures again wait for their turn. All of them together must fit into half
    of the spare RAM.
    """
    shape = plan.facts.shape
    # A patch has at most 16x16 pixels, and a waiting picture takes three bytes for each pixel. Only
    # during the forward of the picture do its pixels take four times as much, as floats.
    picture_bytes = shape.tiles * shape.patches * 16 * 16 * 3
    spare_bytes = max(0, plan.spare_ram_bytes - DECODING_BYTES)
    return max(1, spare_bytes // 2 // (2 * picture_bytes))


def _runtime_bytes(device: str) -> int:
    """Return the part of the working memory that the runtime takes with every batch size."""
    from idefics_cli.models.planning.memory import CPU_RUNTIME_BYTES, GPU_RUNTIME_BYTES

    return GPU_RUNTIME_BYTES if device.startswith("cuda") else CPU_RUNTIME_BYTES
