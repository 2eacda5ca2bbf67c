"""The job of a captioning run: pictures and questions, decided before the model loads."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from idefics_cli.caption.inputs.templates import Template, field_values, parse_template
from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.sinks.base import TEXT_EXTENSION
from idefics_cli.caption.sinks.rows import CAPTION, names, sample_name
from idefics_cli.caption.wording import Wording
from idefics_cli.core.errors import UsageError
from idefics_cli.core.types import (
    Attachment,
    GenerationRequest,
    ImageLimits,
    Mode,
    Part,
    Sampling,
)
from idefics_cli.engine.protocol import Prepared
from idefics_cli.engine.schema.form import ReplyColumn, ReplyForm
from idefics_cli.models.families.few_shot import Shot, with_shots
from idefics_cli.models.families.picture_marks import place_pictures, read_marks


@dataclass(frozen=True, slots=True)
class CaptionQuestion:
    """A question about each picture.

    Attributes:
        prompt: Template of the text (see `parse_template`). In the mode "complete", the model
            continues this text.
        name: Name of the column of the answers; empty for the single caption of a run.
        sample: Number of the sample, from 0; see `CaptionJob.samples`.
    """

    prompt: str
    name: str = ""
    sample: int = 0


@dataclass(frozen=True, slots=True)
class CaptionJob:
    """The pictures of a run and the questions about each of them.

    Attributes:
        pictures: Pictures in the order of the output; no key occurs twice. Any sequence, so that a
            long list need not be in memory.
        others: Pictures of other shards of the run. No file of this run may be one of them.
        questions: One question or more. If there are several, each has a name.
        samples: How many times each question is asked about each picture.
        mode: "chat", or "complete" for base models.
        shots: Examples that precede each question; see `make_shots`.
        banned: Words that no caption holds.
        sampling: How tokens are chosen. Its seed is the seed of the run; see `with_content_seed`.
        batch_size: Largest number of requests that are answered at a time.
        is_batch_automatic: Whether *batch_size* was computed from the free memory, and not given by
            the user.
        readers: Number of threads that read pictures before the model needs them.
        patience_seconds: How long opened pictures wait for more pictures of the same shape. After
            that, a batch is chosen among those that are open.
        columns: Names of the columns of lists. Prompts may use them as fields.
        captions_folder: Folder of existing captions; see `render`.
        text_extension: Extension of text files with captions, with its dot.
        limits: Limits for the pictures that are opened.
        form: What each reply must be; None leaves replies free.
        wording: How a reply becomes a caption.
        asks_again: Whether an empty or repetitive reply is sampled once more, at a temperature
            above 0.
        takes_any_reply: Whether every reply is taken as it is, even if it is empty or repetitive.
    """

    pictures: Sequence[CaptionItem]
    questions: tuple[CaptionQuestion, ...]
    mode: Mode = "chat"
    shots: tuple[Shot, ...] = ()
    banned: tuple[str, ...] = ()
    samples: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    batch_size: int = 8
    is_batch_automatic: bool = False
    readers: int = 4
    patience_seconds: float = 0.25
    columns: tuple[str, ...] = ()
    captions_folder: str | None = None
    text_extension: str = TEXT_EXTENSION
    limits: ImageLimits = field(default_factory=ImageLimits)
    form: ReplyForm | None = None
    wording: Wording = field(default_factory=Wording)
    asks_again: bool = True
    takes_any_reply: bool = False
    others: Sequence[CaptionItem] = ()

    @property
    def asked(self) -> tuple[CaptionQuestion, ...]:
        """The questions as they are asked: each once for each sample.

        With several samples, their names are `caption_1`, `caption_2` and so on, or `NAME_1` and so
        on for a named question.
        """
        if self.samples == 1:
            return self.questions
        return tuple(
            replace(question, name=sample_name(question.name or CAPTION, number), sample=number)
            for question in self.questions
            for number in range(self.samples)
        )

    @property
    def answer_columns(self) -> tuple[str, ...]:
        """Names of the columns of the answers; empty for the single caption of a run."""
        names_ = (question.name for question in self.asked if question.name)
        return tuple(field.name for field in self.fields) or tuple(names_)

    @property
    def fields(self) -> tuple[ReplyColumn, ...]:
        """The properties of the replies, if these are JSON objects; else empty."""
        return self.form.columns if self.form else ()

    def requests(
        self, picture: CaptionItem, *, data: bytes | None = None
    ) -> tuple[GenerationRequest, ...]:
        """Return the requests about *picture*, one for each of `asked`; safe in any thread.

        Args:
            picture: The picture.
            data: The bytes of its file, if they were read already.

        Raises:
            PromptError: If a prompt has a field for which the picture has no value.
            ImageError: If a prompt has the size of the picture, and its header cannot be read.
        """
        requests = [self._request(picture, question, data) for question in self.questions]
        if self.samples == 1:
            return tuple(requests)
        return tuple(
            replace(request, sampling=_sampling_of(request.sampling, number))
            for request in requests
            for number in range(self.samples)
        )

    def _request(
        self, picture: CaptionItem, question: CaptionQuestion, data: bytes | None
    ) -> GenerationRequest:
        messages = with_shots(self.shots, self._parts(picture, question, data), self.mode)
        request = GenerationRequest(messages, self.sampling, self.mode, banned=self.banned)
        return self.form.applied_to(request) if self.form else request

    def make_shots(
        self, examples: Sequence[tuple[CaptionItem, Attachment, str]]
    ) -> tuple[Shot, ...]:
        """Return examples as `shots` for the only question of the job.

        Args:
            examples: The item of each example, which fills the fields of the prompt; its picture;
                and its caption.

        Raises:
            UsageError: If there are several questions.
            PromptError: If the prompt has a field for which an example has no value.
        """
        if examples and len(self.questions) > 1:
            raise UsageError(
                f"an example answers one question, and there are {len(self.questions)}",
                hint="run `idefics caption` once for each question",
            )
        (question,) = self.questions[:1]
        shots = []
        for item, picture, caption in examples:
            parts = self._parts(item, question, None)
            own = (picture if isinstance(part, Attachment) else part for part in parts)
            shots.append(Shot(tuple(own), caption))
        return tuple(shots)

    def _parts(
        self, picture: CaptionItem, question: CaptionQuestion, data: bytes | None
    ) -> tuple[Part, ...]:
        is_named, template = _with_place(question.prompt, self.columns)
        values = field_values(
            template,
            picture,
            limits=self.limits,
            captions_folder=self.captions_folder,
            text_extension=self.text_extension,
            data=data,
        )
        first, *rest = (each.fill(values) for each in template.split(_PLACE))
        parts: tuple[Part, ...] = (first, picture.attachment, *rest)
        if not is_named:
            # In a raw prompt, a space separates the text from the image tokens, as in the model
            # card of idefics2-8b-base. Chat templates add what their models expect.
            parts = (picture.attachment, f" {first}" if self.mode == "complete" else first)
        return tuple(part for part in parts if part != "")


# This is a noncharacter, which Unicode reserves for use inside programs. So no ordinary text
# contains it.
_PLACE = "\ufdd0"


@lru_cache(maxsize=256)
def _with_place(prompt: str, columns: tuple[str, ...]) -> tuple[bool, Template]:
    """Return whether a mark in *prompt* names the picture, and its template.

    The template has `_PLACE` in the place of the picture. The values of its fields have no marks.
    """
    placement = place_pictures(read_marks(prompt.replace(_PLACE, "\ufffd")), (1,))
    parts = placement.in_words(placement.order)
    text = "".join(part if isinstance(part, str) else _PLACE for part in parts)
    return not placement.unnamed, parse_template(text, columns)


def _sampling_of(sampling: Sampling, sample: int) -> Sampling:
    """Return the sampling of one sample: the first one is that of a run with a single sample."""
    if sampling.seed is None or sample == 0:
        return sampling
    digest = hashlib.sha256(f"{sampling.seed} sample {sample}".encode()).digest()
    return replace(sampling, seed=_seed_of(digest))


def _seed_of(digest: bytes) -> int:
    """Return a seed from a digest. torch accepts non-negative seeds of 63 bits."""
    return int.from_bytes(digest[:8]) >> 1


def check_samples(samples: int, sampling: Sampling) -> None:
    """Raise a UsageError if several samples would all be equal."""
    if samples > 1 and sampling.temperature == 0:
        raise UsageError(
            f"`--samples {samples}` needs a temperature above 0: at 0, all samples are equal",
            hint="`--temperature 0.7`; `--seed 1` makes them repeatable",
        )


def check_form(form: ReplyForm, questions: Sequence[CaptionQuestion], samples: int) -> None:
    """Check that replies of *form* fit into the columns of a run.

    Raises:
        UsageError: If a property has the name of another column, or if the columns of the
            properties and those of several answers would be the same.
    """
    names_ = [column.name for column in form.columns]
    if taken := [name for name in names_ if name.casefold() in _RESERVED]:
        raise UsageError(
            f"the schema has the property `{taken[0]}`, and each row has a column of that name",
            hint=f"other names are taken, too: {', '.join(sorted(_RESERVED))}",
        )
    kind = form.constraint.kind
    if kind != "regex" and any(question.name for question in questions):
        hint = "a field of a schema can be a question" if kind == "schema" else None
        raise UsageError(f"--{kind} and --ask exclude each other", hint=hint)
    if kind != "regex" and samples > 1:
        raise UsageError(f"--{kind} and --samples exclude each other")


def named_questions(texts: Sequence[str]) -> tuple[CaptionQuestion, ...]:
    """Return the questions of *texts*, each of the form `NAME=QUESTION`.

    Raises:
        UsageError: If a name is missing, given twice, or not allowed for a column.
    """
    questions = tuple(_named_question(text) for text in texts)
    seen = set[str]()
    for question in questions:
        # In spreadsheets and databases, `Mood` and `mood` are one column.
        if question.name.casefold() in seen:
            raise UsageError(f"two questions are named `{question.name}`")
        seen.add(question.name.casefold())
    return questions


def _named_question(text: str) -> CaptionQuestion:
    name, equals, prompt = text.partition("=")
    name = name.strip()
    example = '`--ask subject="What is in the middle?"`'
    if not equals:
        raise UsageError(f"`--ask` needs a name and a question, not `{text}`", hint=example)
    if not name.isidentifier():
        proposal = re.sub(r"\W+", "_", name).strip("_")
        can_be_name = proposal.isidentifier() and len(proposal) <= 30
        raise UsageError(
            f"`{name}` cannot be the name of a column: a name has letters, digits and `_`",
            hint=f"did you mean `{proposal}`?" if can_be_name else example,
        )
    if name.casefold() in _RESERVED:
        raise UsageError(
            f"`{name}` cannot be the name of a question: each row has a column of that name"
        )
    if not prompt.strip():
        raise UsageError(f"the question `{name}` is empty", hint=example)
    return CaptionQuestion(prompt, name)


_RESERVED = frozenset(names(())) - {CAPTION}


# 4 to 8 threads read pictures, depending on the cores. For a model on a CPU it is always 4 threads,
# because more of them would take cores from the model.
_FEW_READERS, _MOST_READERS = 4, 8


def automatic_readers(device: str, cores: int) -> int:
    """Return the number of threads that read pictures.

    A core takes about a second to decode and cut a photo of 12 megapixels, so four readers can be
    slower than a GPU. On a CPU, more readers would take cores from the model.

    Args:
        device: "cuda", "cuda:1", "mps" or "cpu".
        cores: Number of cores that this process may use.
    """
    return min(_MOST_READERS, max(_FEW_READERS, cores)) if device != "cpu" else _FEW_READERS


# A decode step reads all weights once for all rows of the batch. Beyond this number of rows, each
# further row saves next to nothing.
_MOST_ON_GPU = 64


def automatic_batch_size(
    device: str,
    parameters: int,
    *,
    spare_bytes: int,
    picture_bytes: int,
    most_waiting: int = _MOST_ON_GPU,
) -> int:
    """Return the number of pictures to answer at a time if the user gives none.

    A decode step reads all weights once, however large the batch is. With smolvlm-256m on 4 cores,
    one picture at a time gives 35 tokens per second, 8 pictures give 159 (4.5 times as many), and
    32 pictures give 7.3 times as many.

    Args:
        device: "cuda", "cuda:1", "mps" or "cpu".
        parameters: Number of weights of the model.
        spare_bytes: Memory that is left while the model answers about one picture.
        picture_bytes: Memory that one more picture needs.
        most_waiting: This many prepared pictures fit into the RAM beside a GPU.
    """
    if device.startswith("cuda"):
        # If the estimate is too high, only time is lost: the run catches the error and halves its
        # batch.
        most, usable = min(_MOST_ON_GPU, most_waiting), spare_bytes
    else:
        # When RAM runs out, a Mac swaps and Linux kills the process. The run cannot catch this, so
        # its batches are smaller. A large model also needs minutes for a batch, during which the
        # user sees no caption.
        sizes = ((1_000_000_000, 16), (4_000_000_000, 8))
        most = next((size for limit, size in sizes if parameters < limit), 4)
        usable = spare_bytes // 2
    return max(1, min(most, 1 + usable // max(1, picture_bytes)))


def with_content_seed(prepared: Prepared) -> Prepared:
    """Return *prepared* with a seed that is computed from its seed and the pixels of its pictures.

    So a sampled caption depends on the picture and on the seed of the run, but not on the order
    of the pictures or on their batches. Greedy and unseeded requests are returned unchanged.
    """
    sampling = prepared.request.sampling
    if sampling.temperature == 0 or sampling.seed is None:
        return prepared
    digest = hashlib.sha256(str(sampling.seed).encode())
    for picture in prepared.pictures:
        digest.update(picture.digest)
    sampling = replace(sampling, seed=_seed_of(digest.digest()))
    request = replace(prepared.request, sampling=sampling)
    return replace(prepared, request=request)
