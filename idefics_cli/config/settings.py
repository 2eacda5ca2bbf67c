"""The table of settings: each has a default, a help text, a check, a flag and a variable."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TypeVar, cast, get_args, get_type_hints

from idefics_cli.config.setting import Setting, Value
from idefics_cli.core.types import Attention, DtypeName, ImageLimits, Quantization, Sampling

DEFAULT_MODEL = "smolvlm-500m"  # small enough for any machine; a download of 1 GB
ANSWER_TOKENS = 512
CAPTION_TOKENS = 256
LOCAL = "local"
"""The value of `server` that means this machine, whatever a source of lower precedence says."""

# Numbers that other programs keep in 32 bits. A larger one is a slip; up to here, the context of
# the model and its vocabulary are the limits.
_MOST = 2**31 - 1

T = TypeVar("T")

_IMAGES = ImageLimits()
_SAMPLING = Sampling()


def _setting(default: T, **rule: object) -> T:
    return dataclasses.field(default=default, metadata=rule)


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting with its default. A default of None means that the program decides."""

    model: str = _setting(
        DEFAULT_MODEL, help="Name from `idefics models`, Hub id `owner/name` or local folder."
    )
    revision: str | None = _setting(None, help="Branch, tag or commit of a Hub repository.")
    adapter: str | None = _setting(
        None, help="LoRA adapter: a folder or a Hub id. Without a model, its base model."
    )
    server: str | None = _setting(
        None,
        help="Use the model of this server, such as http://127.0.0.1:8000; `local` uses none.",
    )
    device: str = _setting(
        "auto",
        help="Where the model runs.",
        pattern=r"auto|cpu|mps|cuda(:\d+)?",
        expects="auto, cpu, mps, cuda or cuda:N",
    )
    devices: str | None = _setting(
        None,
        help="Share the pictures among several devices, each with a copy of the model.",
        pattern=r"all|(cuda:\d+|mps|cpu(:\d+)?)(,(cuda:\d+|mps|cpu(:\d+)?))*",
        expects="devices with commas, such as cuda:0,cuda:1, or cpu:2 for two workers, or all",
    )
    ray: str | None = _setting(
        None,
        help="Share the pictures among the nodes of this Ray cluster.",
        pattern=r"auto|(ray://)?[^\s:/]+:\d+|(ray://)?\[[0-9a-fA-F:.]+\]:\d+",
        expects="auto for the cluster of this machine, or HOST:PORT",
    )
    workers: int | None = _setting(
        None,
        help="Number of workers on the cluster of `--ray`.",
        minimum=1,
        maximum=512,
        unset="as many as fit now",
    )
    dtype: str = _setting(
        "auto", help="Number format of the weights.", choices=("auto", *get_args(DtypeName))
    )
    quantization: str = _setting(
        "auto",
        help="Compress the weights to save memory.",
        choices=("auto", *get_args(Quantization)),
    )
    attention: str = _setting(
        "auto", help="Attention implementation.", choices=("auto", *get_args(Attention))
    )
    splitting: bool | None = _setting(
        None,
        help="Cut large pictures into tiles, for more detail at a higher cost.",
        unset="as the model was trained",
    )
    longest_edge: int | None = _setting(
        None,
        help="Scale pictures to this many pixels on the longer side (some models only shrink).",
        minimum=1,
        maximum=100_000,
        unset="as the model was trained",
    )
    offline: bool = _setting(
        False, help="Do not use the network.", also_variables=("HF_HUB_OFFLINE",)
    )
    threads: int | None = _setting(
        # The maximum exists because torch crashes if the system refuses to start the threads.
        None,
        help="Number of CPU threads.",
        minimum=1,
        maximum=1024,
        unset="chosen for this machine",
    )
    system: str | None = _setting(None, help="Instruction before the conversation.")
    temperature: float = _setting(
        _SAMPLING.temperature,
        help="Randomness of the answer; 0 always takes the likeliest token.",
        minimum=0,
        maximum=2,  # as in OpenAI's API; above it, answers are noise
    )
    top_p: float = _setting(
        _SAMPLING.top_p,
        help="Sample from the likeliest tokens up to this total probability.",
        above=0,
        maximum=1,
    )
    top_k: int = _setting(
        _SAMPLING.top_k,
        help="Sample from this many of the likeliest tokens; 0 is all.",
        minimum=0,
        maximum=_MOST,
    )
    repetition_penalty: float = _setting(
        # Beyond these bounds, the penalty alone decides which tokens are written.
        _SAMPLING.repetition_penalty,
        help="Values above 1 discourage repetition.",
        minimum=0.1,
        maximum=10,
    )
    max_new_tokens: int | None = _setting(
        None,
        help="Limit the answer to this number of tokens.",
        minimum=1,
        maximum=_MOST,
        unset=f"{ANSWER_TOKENS}, captions {CAPTION_TOKENS}",
    )
    seed: int | None = _setting(
        None, help="Make random choices repeatable.", minimum=0, maximum=2**63 - 1
    )
    prompt: str | None = _setting(
        None,
        help="Question about each picture; it can have fields such as {stem}.",
        unset="the model's caption prompt",
    )
    samples: int = _setting(
        1,
        help="Write this many captions of each picture, each sampled anew.",
        minimum=1,
        maximum=64,
    )
    raw: bool = _setting(
        False,
        help="Complete PROMPT without a chat template; each `<image>` in it is the next picture.",
    )
    schema_prompt: bool = _setting(
        True, help="Tell the model the fields of `--schema`, or the tags, at the end of the prompt."
    )
    max_pixels: int = _setting(
        _IMAGES.max_pixels, help="Refuse pictures with more pixels than this.", minimum=1
    )
    max_bytes: int = _setting(
        _IMAGES.max_bytes,
        help="Refuse downloads and piped pictures with more bytes than this.",
        minimum=1,
    )
    timeout_seconds: float = _setting(
        _IMAGES.timeout_seconds,
        help="Longest wait for the next data of a download or a pipe.",
        above=0,
        maximum=1_000_000,
    )
    truncated: str = _setting(
        "refuse",
        help="Accept or refuse pictures of which the end is missing.",
        choices=("keep", "refuse"),
    )
    background: str = _setting(
        "white",
        help="Background of the transparent parts of pictures.",
        pattern=r"#[0-9a-fA-F]{6}|[a-zA-Z]{3,}",
        expects="a CSS colour such as black, gray or #1a2b3c",
    )
    batch_size: int | None = _setting(
        None,
        help="Number of pictures or requests to answer at the same time.",
        minimum=1,
        maximum=1_000_000,
        unset="chosen by free memory",
    )
    format: str | None = _setting(
        None,
        help="How captions are written, in one file or in one beside each picture.",
        unset="by the extension of the output",
    )
    output: str | None = _setting(
        None,
        help="Write the captions to this file, or to this folder if each picture gets a file.",
        unset="stdout, the same as `-`",
    )
    existing: str | None = _setting(
        None,
        help="What to do with existing captions.",
        choices=("error", "skip", "overwrite", "append", "prepend"),
        unset="error",
        command_line_values=("overwrite",),
    )
    overwrite: bool = _setting(
        False, help="Replace what earlier runs wrote.", command_line_only=True
    )
    embed: bool = _setting(
        False,
        help="Write each caption into its picture, as metadata; needs exiftool.",
        command_line_only=True,
    )
    full_names: bool | None = _setting(
        None,
        help="Name text files `a.jpg.txt`, so that `a.png` gets a file of its own.",
        unset="only with xmp",
    )
    text_extension: str | None = _setting(
        None, help="Extension of text files, `.txt` if not given."
    )
    report: str | None = _setting(
        None, help="Write an HTML page that shows all pictures with their captions."
    )
    prefix: str | None = _setting(None, help="Put this text before each caption, unchanged.")
    suffix: str | None = _setting(None, help="Put this text after each caption, unchanged.")
    trigger: str | None = _setting(
        None, help="Begin each caption with these words and a comma, unless it has them already."
    )
    strip_preamble: bool = _setting(
        False, help="Remove beginnings such as `The image shows` from captions; English only."
    )
    on_truncate: str = _setting(
        "keep",
        help="Leave a cut caption, remove its unfinished sentence, or continue it.",
        choices=("keep", "trim", "extend"),
    )
    retry_failed: bool = _setting(
        False, help="Try again only what failed before.", command_line_only=True
    )
    failures: str | None = _setting(
        None,
        help="List the failed pictures in this file, for `--filelist`.",
        unset="beside the output",
    )
    fail_fast: bool = _setting(False, help="Stop the run at the first failure.")
    max_failures: int | None = _setting(
        None, help="Stop the run after more failures than this.", minimum=0, unset="never"
    )
    shard: str | None = _setting(
        None,
        help="Caption one part of the pictures; other tasks caption the other parts.",
        pattern=r"\d+/\d+|auto(/\d+)?",
        expects="I/N, counted from 0, or what a scheduler says, such as auto",
    )
    recursive: bool = _setting(False, help="Include the pictures of subfolders.")
    follow_links: bool = _setting(
        False, help="Enter folders outside of the given ones that links lead to."
    )
    count: int = _setting(8, help="Number of sample pictures.", minimum=1)
    json: bool = _setting(False, help="Print JSON.")
    stream: bool | None = _setting(
        None, help="Show the answer while the model writes it.", unset="on a terminal"
    )
    plain: bool = _setting(False, help="Show answers without colours.")
    preview: bool = _setting(True, help="Show the pictures of a chat in the terminal.")
    accessible: bool = _setting(
        False,
        help="For screen readers: plain lines, no spinner, nothing drawn.",
        also_variables=("ACCESSIBLE",),
    )
    host: str = _setting(
        "127.0.0.1", help="Address to listen at. If other machines can reach it, a key is needed."
    )
    port: int = _setting(
        8000, help="Port to listen at; 0 takes any free one.", minimum=0, maximum=65_535
    )
    api_key_file: str | None = _setting(
        None, help="File that holds the key of the server. IDEFICS_API_KEY holds the key itself."
    )
    origin: str | None = _setting(
        None, help="Web pages that may send requests: origins like https://a.example, with commas."
    )
    allowed_host: str | None = _setting(
        None, help="Further names that a Host header may have for this server, with commas."
    )
    served_name: str | None = _setting(
        None, help="Name of the model in answers.", unset="that of the model"
    )
    queue: int = _setting(
        64, help="Number of requests that may wait; more are refused.", minimum=0, maximum=10_000
    )
    keep_alive: str = _setting(
        "5m",
        help="Unload the model after this time without requests; -1 is never.",
        pattern=r"-1|\d{1,6}[smh]?",
        expects="a time such as 90s, 5m or 2h",
    )
    drain_seconds: float = _setting(
        30.0,
        help="Time for running requests when the server ends.",
        minimum=0,
        maximum=86_400,
    )
    image_urls: str = _setting(
        "public",
        help="Download pictures from public addresses, from these hosts, or not at all.",
        pattern=r"[\w.:,\[\]-]+",
        expects="public, off or hosts with commas",
    )
    max_images: int = _setting(
        16, help="Largest number of pictures of a request.", minimum=0, maximum=1000
    )
    max_request_bytes: int = _setting(
        64 * 1024 * 1024,
        help="Largest number of bytes of a request.",
        minimum=1,
        maximum=2**31 - 1,
    )
    save: bool = _setting(True, help="Store each turn of the chat on disk.")
    yes: bool = _setting(False, help="Download a model without asking.", command_line_only=True)
    dry_run: bool = _setting(
        False,
        help="Print what would run, and why; write nothing. To tell the time, `caption` and `tune` "
        "load the model if it is downloaded.",
        command_line_only=True,
    )
    verbose: bool = _setting(False, help="Also show the messages of the libraries.")
    quiet: bool = _setting(False, help="Show errors only.")


@cache
def setting_table() -> Mapping[str, Setting]:
    """Return every setting by name, in the order of `Settings`."""
    hints = get_type_hints(Settings)
    rows = {}
    for row in dataclasses.fields(Settings):
        # The first argument of `str | None` is `str`; a plain type has no arguments.
        kind = (get_args(hints[row.name]) or (hints[row.name],))[0]
        rows[row.name] = Setting(row.name, kind, cast(Value, row.default), **row.metadata)
    return MappingProxyType(rows)


def with_choices(choices: Mapping[str, tuple[str, ...]]) -> Mapping[str, Setting]:
    """Return `setting_table` with *choices*, which rooms of a higher rank know.

    Args:
        choices: Name of a setting -> its allowed texts.
    """
    rows = dict(setting_table())
    for name, texts in choices.items():
        rows[name] = dataclasses.replace(rows[name], choices=texts)
    return MappingProxyType(rows)


def closest_name(name: str, names: Mapping[str, object]) -> str | None:
    """Return the name among *names* that is most similar to *name*; None if there is none."""
    close = difflib.get_close_matches(name.lower().replace("-", "_"), names, n=1, cutoff=0.6)
    return close[0] if close else None
