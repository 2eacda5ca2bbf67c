"""The values that flow between layers: frozen, picklable without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

# Called with a phase ("loading", "reading", …) and its share done in 0..1, or None if unknown.
Progress = Callable[[str, float | None], None]
Role = Literal["system", "user", "assistant"]
Finish = Literal["stop", "length", "cancelled"]
# "chat" goes through the chat template; "complete" gives the prompt as it is.
Mode = Literal["chat", "complete"]
Device = str  # "cuda", "cuda:1", "mps" or "cpu"
DtypeName = Literal["bfloat16", "float16", "float32"]
Quantization = Literal["none", "8bit", "4bit"]
Format4bit = Literal["nf4", "int4"]
Attention = Literal["flash_attention_2", "flash_attention_3", "flash_attention_4", "sdpa", "eager"]


@dataclass(frozen=True, slots=True)
class Attachment:
    """An image by name.

    Attributes:
        source: A path, URL, `data:` or `file://` URI, `-` (stdin) or `clipboard:`.
        digest: SHA-256 of the bytes of the file, in hexadecimal; "" if the caller does not know
            it. An engine does not open a picture again that it remembers by its digest.
    """

    source: str
    digest: str = ""


Part = str | Attachment


@dataclass(frozen=True, slots=True)
class Message:
    """One turn; *parts* keeps text and images in the order given."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        """The images of this turn, in order."""
        return tuple(part for part in self.parts if isinstance(part, Attachment))

    @property
    def text(self) -> str:
        """The text parts of this turn, joined."""
        return "".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 is greedy; every other field but `repetition_penalty` and
            `max_new_tokens` is then without effect.
        top_p: Nucleus mass in (0, 1].
        top_k: Candidates kept; 0 keeps all.
        repetition_penalty: 1 is none (Keskar et al. 2019, as in transformers).
        max_new_tokens: The reply ends with `finish="length"` after so many.
        seed: Makes a sampled reply reproducible; None draws a fresh one.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 512
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A conversation that ends with a user turn, or a raw prompt, and how to answer it."""

    messages: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)
    mode: Mode = "chat"

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        """All images of the conversation, in order."""
        return tuple(a for message in self.messages for a in message.attachments)


@dataclass(frozen=True, slots=True)
class TokenChunk:
    """A piece of a streamed answer; only the last has *finish*, and its text may be empty.

    Attributes:
        text: New text, already cleaned; the chunks of a stream join to `Completion.text`.
        new_tokens: Tokens generated so far.
        finish: Why the answer ended, on the last chunk.
        prompt_tokens: As in `Completion`, on every chunk.
        reused_tokens: As in `Completion`, on the last chunk; 0 before.
        prefill_seconds: As in `Completion`, on the last chunk; 0 before.
        decode_seconds: As in `Completion`, on the last chunk; 0 before.
    """

    text: str
    new_tokens: int
    finish: Finish | None = None
    prompt_tokens: int = 0
    reused_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Completion:
    """One whole answer.

    Attributes:
        text: The answer without control tokens.
        prompt_tokens: Tokens of the prompt, image tokens included.
        reused_tokens: Prompt tokens that came from the KV cache of an earlier turn.
        new_tokens: Tokens generated, the end token included.
        finish: `stop` (the model ended), `length` (cut) or `cancelled`.
        prefill_seconds: Wall time of encoding and prefill; of the whole batch, if batched.
        decode_seconds: Wall time of the token loop; of the whole batch, if batched.
        token_ids: What the model generated, the end token included.
        at_a_time: How many were answered at a time, if the memory had run out with this one
            among more; None for most.
    """

    text: str
    prompt_tokens: int
    reused_tokens: int
    new_tokens: int
    finish: Finish
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    token_ids: tuple[int, ...] = ()
    at_a_time: int | None = None


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What the image loader accepts.

    Attributes:
        max_pixels: Width times height, checked on the header before decoding.
        max_bytes: Size of one download, of a `data:` URI or of stdin.
        timeout_seconds: Of one connect or read.
        max_redirects: HTTP redirects followed.
    """

    max_pixels: int = 100_000_000
    max_bytes: int = 100_000_000
    timeout_seconds: float = 20.0
    max_redirects: int = 5


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """Everything that is needed to load one model, decided before any weight is read.

    Attributes:
        repo: Hub id or absolute path of a local folder.
        revision: Branch, tag or commit of a Hub repository.
        family: A key of `models.registry.FAMILIES`, which is the config's `model_type`.
        name: What the user calls the model; an alias or *repo*.
        chats: False for base models, which only complete.
        dtype: Dtype of all weights that are not quantized.
        quantization: Of the text model's linear layers.
        format_4bit: What `4bit` is: bitsandbytes' nf4 with double quantization, or our own
            groups of evenly spaced numbers, on a CPU only.
        attention: `attn_implementation` for transformers.
        device: Where the model runs; the first device when *device_map* is set.
        device_map: "auto" spreads layers over devices and RAM; None puts all on *device*.
        max_memory: Bytes per device ("0", "1", … or "cpu") for *device_map*.
        splitting: Cut large images into tiles; None keeps the checkpoint's setting.
        offline: Never reach for the network.
        threads: CPU threads for torch; None keeps torch's choice.
        limits: What the image loader accepts.
        quantized_folder: Where weights that took long to quantize are kept; None keeps none.
    """

    repo: str
    family: str
    name: str = ""
    revision: str | None = None
    chats: bool = True
    dtype: DtypeName = "float32"
    quantization: Quantization = "none"
    format_4bit: Format4bit = "nf4"
    attention: Attention = "sdpa"
    device: Device = "cpu"
    device_map: Literal["auto"] | None = None
    max_memory: Mapping[str, int] | None = None
    splitting: bool | None = None
    offline: bool = False
    threads: int | None = None
    limits: ImageLimits = field(default_factory=ImageLimits)
    quantized_folder: str | None = None


@dataclass(frozen=True, slots=True)
class CaptionRecord:
    """What became of one picture: exactly one of *caption* and *error* is set.

    Attributes:
        file_name: The key of the picture: its POSIX path as listed, or its URL.
        caption: The caption, when the picture could be captioned.
        error: One line that says what went wrong.
        error_kind: `ImageError.kind`, or the class of another failure.
        finish: Of the caption.
        width: Pixels, as seen by a person (after EXIF orientation); None when unread.
        height: As *width*.
        new_tokens: Tokens generated for the caption.
        seconds: This picture's share of the model's time.
        hint: What to do about the error.
        sha256: Hex digest of the file's bytes; None when they were not read.
        answers: With several questions, name and answer of each in the order asked; *caption* is
            then the answers joined by line breaks.
        notes: What was done to get it, as "answered alone: out of memory" or "asked again: the
            reply went in circles".
        stamp: Size and time of change of the file when it was read, and a digest of the columns
            that a list gave for the prompt: while they are the same, so is the caption.
    """

    file_name: str
    caption: str | None = None
    error: str | None = None
    error_kind: str | None = None
    finish: Finish | None = None
    width: int | None = None
    height: int | None = None
    new_tokens: int = 0
    seconds: float = 0.0
    hint: str | None = None
    sha256: str | None = None
    answers: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    stamp: str | None = None

    def __post_init__(self) -> None:
        if (self.caption is None) == (self.error is None):
            raise ValueError("a caption record has exactly one of caption and error")
