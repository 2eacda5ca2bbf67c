"""The values that flow between rooms: frozen dataclasses that pickle without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from idefics_cli.core.adapters import LoraAdapter
from idefics_cli.core.choices import ChoiceResult
from idefics_cli.core.colours import WHITE, Colour
from idefics_cli.core.logprobs import TokenLogprob
from idefics_cli.core.servers import ServerSpec

# A callback that gets a phase ("loading", "reading", …) and the share of it that is done, in 0..1;
# the share is None if unknown. A server that makes a run wait is a phase, too.
Progress = Callable[[str, float | None], None]
Role = Literal["system", "user", "assistant"]
Finish = Literal["stop", "length", "cancelled"]
# "chat" applies the chat template; "complete" passes the prompt to the model unchanged.
Mode = Literal["chat", "complete"]
ConstraintKind = Literal["schema", "regex", "choice"]
Device = str  # "cuda", "cuda:1", "mps" or "cpu"
DtypeName = Literal["bfloat16", "float16", "float32"]
Quantization = Literal["none", "8bit", "4bit"]
Format4bit = Literal["nf4", "int4"]
Attention = Literal["flash_attention_2", "flash_attention_3", "flash_attention_4", "sdpa", "eager"]


@dataclass(frozen=True, slots=True)
class PictureDetail:
    """How much detail of a picture a model sees. None leaves a choice to the loaded model.

    Attributes:
        splitting: Whether to cut a large picture into tiles.
        longest_edge: Length in pixels to which the longer side of a picture is scaled: `size` of
            the image processor.
    """

    splitting: bool | None = None
    longest_edge: int | None = None


@dataclass(frozen=True, slots=True)
class Attachment:
    """A picture, named by its source.

    Attributes:
        source: A path, URL, `data:` or `file://` URI, `-` (stdin) or `clipboard:`.
        digest: SHA-256 of the bytes of the file, in hexadecimal; "" if the caller does not know
            it. If an engine knows the digest, it does not open the picture again.
        detail: How much of its detail the model sees.
    """

    source: str
    digest: str = ""
    detail: PictureDetail = PictureDetail()

    def __reduce__(self) -> tuple[object, ...]:
        # The way of dataclasses takes three times as long.
        return Attachment, (self.source, self.digest, self.detail)


Part = str | Attachment


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation; *parts* are its texts and images in order."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        """The images of this message, in order."""
        return tuple(part for part in self.parts if isinstance(part, Attachment))

    @property
    def text(self) -> str:
        """The text parts of this message, joined."""
        return "".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 means greedy decoding. Then `top_p`, `top_k` and `seed` have no effect.
        top_p: Total probability of the most likely tokens that are kept, in (0, 1].
        top_k: Number of the most likely tokens that are kept; 0 keeps all.
        repetition_penalty: 1 means no penalty (Keskar et al. 2019, as in transformers).
        max_new_tokens: Largest number of new tokens; a reply that it cuts has `finish="length"`.
        seed: Makes a sampled reply reproducible; None draws a new seed.
        stop: Texts, none of them empty. A reply ends before the first of them with `finish="stop"`.
        presence_penalty: What the logit of a token loses if the reply has it (OpenAI's API).
        frequency_penalty: What it loses for each time that the reply has it (OpenAI's API).
        ignores_end: Whether an end token does not end a reply, so that its length is known.
        top_logprobs: Number of the likeliest tokens whose probabilities the reply tells, beside
            that of its own tokens; None tells none at all.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 512
    seed: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    ignores_end: bool = False
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the text of a reply must match, unless the reply is cut.

    Attributes:
        kind: "schema" for JSON text that a JSON Schema allows; "regex" for a regular expression,
            which the whole text matches; "choice" for the likeliest of some answers.
        text: The schema as JSON, the expression in the syntax of Rust's `regex`, or the choices as
            a list in JSON.
    """

    kind: ConstraintKind
    text: str


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A conversation that ends with a user message, or a raw prompt, and how to answer it.

    *constraint* is what the answer must match; None leaves the answer free. *banned* are words
    that the answer must not hold. Only requests with the same *cache_salt* use the KV states of
    each other.
    """

    messages: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)
    mode: Mode = "chat"
    constraint: Constraint | None = None
    banned: tuple[str, ...] = ()
    cache_salt: str = ""

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        """All images of the conversation, in order."""
        return tuple(a for message in self.messages for a in message.attachments)


@dataclass(frozen=True, slots=True)
class TokenChunk:
    """A piece of a streamed answer; only the last one has *finish*, and its text may be empty.

    Attributes:
        text: New text without control tokens; all chunks joined are `Completion.text`.
        new_tokens: Number of tokens generated so far.
        finish: The reason why the answer ended; None before the last chunk.
        prompt_tokens: As in `Completion`, on every chunk.
        reused_tokens: As in `Completion`; 0 before the last chunk.
        prefill_seconds: As in `Completion`; 0 before the last chunk.
        decode_seconds: As in `Completion`; 0 before the last chunk.
        logprobs: Those of the tokens of *text*; what is left is in `Completion` only.
    """

    text: str
    new_tokens: int
    finish: Finish | None = None
    prompt_tokens: int = 0
    reused_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """One whole answer.

    Attributes:
        text: The answer without control tokens.
        prompt_tokens: Number of tokens of the prompt, image tokens included.
        reused_tokens: Number of prompt tokens that came from the KV cache of an earlier turn.
        new_tokens: Number of generated tokens, the end token included.
        finish: `stop` (the model ended it), `length` (it was cut) or `cancelled`.
        prefill_seconds: Wall time of image encoding and prefill, for the whole batch.
        decode_seconds: Wall time of all decode steps, for the whole batch.
        token_ids: The generated tokens, the end token included. A reply that its constraint ends
            has no end token.
        at_a_time: The reduced batch size, if the memory ran out in a larger batch with this
            request; None otherwise.
        choice: The probabilities, if the request has choices; *text* is then the likeliest one.
        logprobs: Those of *token_ids* without an end token, if the sampling asks for them.
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
    choice: ChoiceResult | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


DECODING_BYTES = 1_000_000_000
"""Largest memory of all pictures that are decoded together; a larger picture is decoded alone."""


SourceKind = Literal["file", "stdin", "clipboard", "data", "web", "remote"]
ALL_SOURCES: frozenset[SourceKind] = frozenset(get_args(SourceKind))


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """The limits of the image loader, and what it makes of pictures that are not whole.

    Attributes:
        max_pixels: Width times height, checked on the header before decoding.
        max_bytes: Size of one download, of a `data:` URI or of stdin.
        timeout_seconds: Time limit of one connect or read.
        max_redirects: Number of HTTP redirects to follow.
        keeps_truncated: Whether to accept pictures of which the end is missing.
        background: The colour below transparent pixels.
        sources: The kinds of sources that are opened; the others are refused unread.
        addresses: The servers of pictures: "any", but no redirect from the internet into the local
            network; "public" at the ports 80 and 443; or only these hosts, `host` or `host:port`.
        download_seconds: Time limit of a whole download; None is ten times *timeout_seconds*.
    """

    max_pixels: int = 100_000_000
    max_bytes: int = 100_000_000
    timeout_seconds: float = 20.0
    max_redirects: int = 5
    keeps_truncated: bool = False
    background: Colour = WHITE
    sources: frozenset[SourceKind] = ALL_SOURCES
    addresses: Literal["any", "public"] | frozenset[str] = "any"
    download_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """Names of the kernels that compute each part of a model: keys of `kernels.table.KERNELS`.

    A layer gets the first kernel of its part that fits it. If no kernel fits, or the part has no
    kernels, the layer stays one of torch, transformers or bitsandbytes.

    Attributes:
        text: Linear layers of the text model.
        head: The linear layer that computes the logits.
        connector: Linear layers between vision and text that multiply few rows.
        vision: Linear layers that multiply one row for each patch of a picture.
        mlp: The two linear layers of a vision layer together with the activation between them.
        patches: The convolution that cuts a picture into patches.
        norm: Root mean square norms.
        step: Decode steps of the whole text model; if none fits, torch runs layer after layer.
        attention: Kernel of all attention layers; None uses `LoadSpec.attention`.
        product_dtype: Dtype to which quantized weights are widened for many rows.
    """

    text: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    connector: tuple[str, ...] = ()
    vision: tuple[str, ...] = ()
    mlp: tuple[str, ...] = ()
    patches: tuple[str, ...] = ()
    norm: tuple[str, ...] = ()
    step: tuple[str, ...] = ()
    attention: str | None = None
    product_dtype: DtypeName = "float32"

    @property
    def names(self) -> tuple[str, ...]:
        """All kernels, each once, in the order of the parts."""
        parts = (self.text, self.head, self.connector, self.vision, self.mlp, self.patches)
        found = [name for part in (*parts, self.norm, self.step) for name in part]
        return tuple(dict.fromkeys(found + ([self.attention] if self.attention else [])))


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """All choices for loading one model, made before any weight is read.

    Attributes:
        repo: Hub id or absolute path of a local folder.
        revision: Branch, tag or commit of a Hub repository.
        family: Key of `FAMILIES` in `models/families/spec.py`: the `model_type` of the config.
        name: The name that the user gave: an alias or *repo*.
        chats: Whether the model chats; False for base models, which only complete a prompt.
        uses_template: Whether prompts are made with the chat template; raw prompts need none.
        dtype: Dtype of all weights that are not quantized.
        quantization: Quantization of the linear layers of the text model.
        format_4bit: Format of the weights if *quantization* is "4bit": nf4 of bitsandbytes with
            double quantization, or int4, a format of ours for CPUs.
        attention: `attn_implementation` for transformers.
        kernels: Kernels for a CPU; none by default.
        device: Device of the model; the first device if *device_map* is set.
        device_map: "auto" spreads layers over devices and RAM; None puts all on *device*.
        max_memory: Bytes per device ("0", "1", … or "cpu") for *device_map*.
        splitting: Whether to cut large images into tiles; None keeps the checkpoint's setting.
        longest_edge: Length in pixels to which the longer side of a picture is scaled; None keeps
            the checkpoint's setting.
        vision_tiles: Maximum number of whole tiles in one forward of the vision tower; None leaves
            it to the engine.
        offline: Whether the network must not be used.
        float32_modules: Full names of modules that are computed in float32, whatever *dtype* is.
        threads: Number of CPU threads for torch; None keeps torch's choice.
        limits: Limits of the image loader.
        quantized_folder: Folder in which quantized weights are kept for later starts; None keeps
            none.
        uses_graphs: Whether the engine may record decode steps as CUDA graphs.
        adapter: The adapter that changes the weights; None for the model as it is.
        server: The server that runs the model, which is then *repo*, of an unknown *family*; None
            runs it here.
    """

    repo: str
    family: str
    name: str = ""
    revision: str | None = None
    chats: bool = True
    uses_template: bool = True
    dtype: DtypeName = "float32"
    quantization: Quantization = "none"
    format_4bit: Format4bit = "nf4"
    attention: Attention = "sdpa"
    kernels: KernelChoice = field(default_factory=KernelChoice)
    device: Device = "cpu"
    device_map: Literal["auto"] | None = None
    max_memory: Mapping[str, int] | None = None
    splitting: bool | None = None
    longest_edge: int | None = None
    vision_tiles: int | None = None
    float32_modules: tuple[str, ...] = ()
    offline: bool = False
    threads: int | None = None
    limits: ImageLimits = field(default_factory=ImageLimits)
    quantized_folder: str | None = None
    uses_graphs: bool = True
    adapter: LoraAdapter | None = None
    server: ServerSpec | None = None


@dataclass(frozen=True, slots=True)
class CaptionRecord:
    """The result of captioning one picture: exactly one of *caption* and *error* is set.

    Attributes:
        file_name: The key of the picture: its POSIX path as listed, or its URL.
        caption: The caption; None after an error.
        error: The error on one line; None if there is a caption.
        error_kind: `ImageError.kind`, or the class of another error.
        finish: The reason why the caption ended.
        width: Width in pixels after EXIF orientation; None if the picture was not read.
        height: As *width*.
        new_tokens: Number of tokens generated for the caption.
        seconds: The part of the model's time that this picture took.
        hint: The fix for the error.
        sha256: Hex digest of the bytes of the file; None if they were not read.
        answers: With several questions, the name and answer of each in the order asked;
            *caption* is then the answers joined by line breaks.
        notes: Special steps that were needed for the caption, such as "answered alone: out of
            memory" or "asked again: the reply went in circles".
        stamp: Size and modification time of the file when it was read, and a digest of the
            columns of a list that the prompt uses. While the stamp is equal, the caption is valid.
        prompt_tokens: Number of tokens of the prompt, image tokens included; of all questions.
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
    prompt_tokens: int = 0

    def __post_init__(self) -> None:
        if (self.caption is None) == (self.error is None):
            raise ValueError("a caption record has exactly one of caption and error")
