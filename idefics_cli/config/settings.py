"""The one table of settings: each has a default, a help text, a check, a flag and a variable."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TypeVar, cast, get_args, get_type_hints

from idefics_cli.core.types import (
    Attention,
    DtypeName,
    ImageLimits,
    Quantization,
    Sampling,
)

DEFAULT_MODEL = "smolvlm-500m"  # runs on any machine; 1 GB to download
ANSWER_TOKENS = 512
CAPTION_TOKENS = 256

Value = str | int | float | bool | None
T = TypeVar("T")

_IMAGES = ImageLimits()
_SAMPLING = Sampling()
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


def _setting(default: T, **rule: object) -> T:
    return dataclasses.field(default=default, metadata=rule)


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting with its default; None means that the program decides."""

    model: str = _setting(
        DEFAULT_MODEL, help="Name from `idefics models`, Hub id `owner/name` or local folder."
    )
    revision: str | None = _setting(None, help="Branch, tag or commit of a Hub repository.")
    device: str = _setting(
        "auto",
        help="Where the model runs.",
        pattern=r"auto|cpu|mps|cuda(:\d+)?",
        expects="auto, cpu, mps, cuda or cuda:N",
    )
    dtype: str = _setting(
        "auto", help="Number format of the weights.", choices=("auto", *get_args(DtypeName))
    )
    quantization: str = _setting(
        "auto",
        help="Smaller weights for less memory.",
        choices=("auto", *get_args(Quantization)),
    )
    attention: str = _setting(
        "auto",
        help="Attention implementation.",
        choices=("auto", *get_args(Attention)),
    )
    splitting: bool | None = _setting(
        None,
        help="Cut large pictures into tiles: sees more, costs more.",
        unset="as the model was trained",
    )
    offline: bool = _setting(
        False, help="Never reach for the network.", also_variables=("HF_HUB_OFFLINE",)
    )
    threads: int | None = _setting(
        # torch dies when the system refuses it that many threads.
        None,
        help="CPU threads.",
        minimum=1,
        maximum=1024,
        unset="by the machine",
    )
    system: str | None = _setting(None, help="Instruction that precedes the conversation.")
    temperature: float = _setting(
        _SAMPLING.temperature, help="0 always takes the likeliest token.", minimum=0
    )
    top_p: float = _setting(
        _SAMPLING.top_p, help="Sample from this share of the probability.", above=0, maximum=1
    )
    top_k: int = _setting(
        _SAMPLING.top_k, help="Sample from this many tokens; 0 from all.", minimum=0
    )
    repetition_penalty: float = _setting(
        _SAMPLING.repetition_penalty, help="Above 1 discourages repeating.", above=0
    )
    max_new_tokens: int | None = _setting(
        None,
        help="Cut the answer after so many tokens.",
        minimum=1,
        unset=f"{ANSWER_TOKENS}, captions {CAPTION_TOKENS}",
    )
    seed: int | None = _setting(
        None, help="Makes random choices repeatable.", minimum=0, maximum=2**63 - 1
    )
    prompt: str | None = _setting(
        None,
        help="What to ask about each picture; may have fields, as {stem}.",
        unset="the model's caption prompt",
    )
    raw: bool = _setting(
        False, help="Complete PROMPT as it is; each `<image>` in it is a picture, in order."
    )
    max_pixels: int = _setting(
        _IMAGES.max_pixels, help="Refuse pictures with more pixels.", minimum=1
    )
    max_bytes: int = _setting(
        _IMAGES.max_bytes, help="Refuse downloads and piped pictures above this size.", minimum=1
    )
    timeout_seconds: float = _setting(
        _IMAGES.timeout_seconds,
        help="Longest silence of a download or of piped text.",
        above=0,
    )
    batch_size: int | None = _setting(
        None, help="Pictures captioned at the same time.", minimum=1, unset="by free memory"
    )
    format: str | None = _setting(
        None,
        help="How captions are written; txt is a file beside each picture.",
        choices=("tsv", "jsonl", "csv", "parquet", "txt"),
        unset="by the extension of the output, else tsv",
    )
    output: str | None = _setting(
        None,
        help="Write the captions to this file, or to this folder for txt.",
        unset="stdout, as does `-`",
    )
    existing: str | None = _setting(
        None,
        help="What becomes of captions that are there already.",
        choices=("error", "skip", "overwrite", "append", "prepend"),
        unset="error",
    )
    overwrite: bool = _setting(
        False, help="Short for `--existing overwrite`.", command_line_only=True
    )
    full_names: bool = _setting(
        False, help="Name a caption file `a.jpg.txt`, so that `a.png` has its own."
    )
    report: str | None = _setting(
        None, help="Write a page that shows all pictures with their captions."
    )
    prefix: str | None = _setting(None, help="Put this before each caption, exactly as it is.")
    suffix: str | None = _setting(None, help="Put this behind each caption, exactly as it is.")
    trigger: str | None = _setting(
        None, help="Begin each caption with these words and a comma, unless it has them."
    )
    strip_preamble: bool = _setting(
        False, help="Leave `The image shows` and the like, in English, out of captions."
    )
    on_truncate: str = _setting(
        "keep",
        help="What becomes of a caption that was cut: stay, lose its broken sentence, or go on.",
        choices=("keep", "trim", "extend"),
    )
    retry_failed: bool = _setting(
        False,
        help="Take the pictures that failed before, and no others.",
        command_line_only=True,
    )
    failures: str | None = _setting(
        None,
        help="List the pictures that failed in this file, for `--filelist`.",
        unset="beside the output",
    )
    fail_fast: bool = _setting(False, help="End the run when a picture fails.")
    max_failures: int | None = _setting(
        None, help="End the run when more pictures than this fail.", minimum=0, unset="never"
    )
    recursive: bool = _setting(False, help="Also take the pictures of sub-folders.")
    count: int = _setting(8, help="How many sample pictures to write.", minimum=1)
    json: bool = _setting(False, help="Print JSON.")
    stream: bool | None = _setting(
        None, help="Show the answer while it is written.", unset="on a terminal"
    )
    plain: bool = _setting(False, help="Show answers without colours and line breaks.")
    preview: bool = _setting(True, help="Draw the pictures of a chat in the terminal.")
    accessible: bool = _setting(
        False, help="For screen readers: plain lines, no spinner, nothing drawn or redrawn."
    )
    save: bool = _setting(True, help="Keep the chat on disk, turn by turn.")
    yes: bool = _setting(False, help="Download a model without asking.", command_line_only=True)
    dry_run: bool = _setting(
        False,
        help="Print what would run, and why; of the model only `caption` loads one that is here.",
        command_line_only=True,
    )
    verbose: bool = _setting(False, help="Show the messages of the libraries too.")
    quiet: bool = _setting(False, help="Show errors only.")


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known of one field of `Settings`.

    Attributes:
        name: Field of `Settings`, key in `config.toml` and parameter of a command.
        kind: Type of a value, if there is one.
        default: None when the program decides.
        help: One sentence.
        unset: What None means, for people; empty when it means nothing.
        choices: The allowed texts, in a closed set.
        pattern: Regular expression of allowed texts; *expects* says it in words.
        minimum: Least allowed number.
        above: Allowed numbers are greater.
        maximum: Greatest allowed number.
        also_variables: Variables of other programs that mean the same.
        command_line_only: Whether neither a variable nor the configuration file may set it,
            because it is a decision about a single call.
    """

    name: str
    kind: type[str] | type[int] | type[float] | type[bool]
    default: Value
    help: str
    unset: str = ""
    choices: tuple[str, ...] = ()
    pattern: str | None = None
    expects: str = ""
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    also_variables: tuple[str, ...] = ()
    command_line_only: bool = False

    @property
    def flag(self) -> str:
        """The long option, as `--top-p`."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable, as `IDEFICS_TOP_P`."""
        return f"IDEFICS_{self.name.upper()}"

    @property
    def expectation(self) -> str:
        """The allowed texts, for people; "" when any text is allowed."""
        if not self.choices:
            return self.expects
        return ", ".join(self.choices[:-1]) + " or " + self.choices[-1]

    @property
    def words(self) -> tuple[str, ...]:
        """The texts that can be completed: the choices, or those that *expects* names."""
        if self.choices or not self.pattern:
            return self.choices
        named = dict.fromkeys(re.findall(r"[\w-]+", self.expects))
        return tuple(word for word in named if re.fullmatch(self.pattern, word))

    @property
    def shown_default(self) -> str:
        """The default, for people."""
        if self.default is None:
            return self.unset
        if isinstance(self.default, bool):
            return "on" if self.default else "off"
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)

    def check(self, value: object) -> Value:
        """Return *value* as this setting's type.

        Raises:
            ValueError: If it is of another type or out of range; the text completes
                "`name` …", as "must be 0 or more, not -1".
        """
        if self.kind is float and type(value) is int:
            value = float(value)
        # `bool` is an `int` for isinstance; a setting of numbers takes none.
        if type(value) is not self.kind:
            raise ValueError(f"must be {_WORDS[self.kind]}, not {_quoted(value)}")
        if isinstance(value, str):
            self._check_text(value)
        elif not isinstance(value, bool):
            self._check_number(cast(float, value))
        return cast(Value, value)

    def parse(self, text: str) -> Value:
        """Return the value that *text*, of a variable, stands for.

        Raises:
            ValueError: As `check`.
        """
        if self.kind is str:
            return self.check(text)
        if self.kind is bool:
            lowered = text.strip().lower()
            if lowered in _TRUE | _FALSE:
                return lowered in _TRUE
            raise ValueError(f"must be {_WORDS[bool]}, not {_quoted(text)}")
        try:
            number = self.kind(text)
        except ValueError:
            raise ValueError(f"must be {_WORDS[self.kind]}, not {_quoted(text)}") from None
        return self.check(number)

    def _check_text(self, value: str) -> None:
        if self.choices and value not in self.choices:
            closest_name = difflib.get_close_matches(value.lower(), self.choices, n=1)
            guess = f"; did you mean `{closest_name[0]}`?" if closest_name else ""
            raise ValueError(f"must be {self.expectation}, not {_quoted(value)}{guess}")
        if self.pattern and not re.fullmatch(self.pattern, value):
            raise ValueError(f"must be {self.expectation}, not {_quoted(value)}")

    def _check_number(self, value: float) -> None:
        if not math.isfinite(value):
            raise ValueError(f"must be a finite number, not {_quoted(value)}")
        limits = []
        if self.minimum is not None:
            limits.append(f"{self.minimum:g} or more")
        if self.above is not None:
            limits.append(f"more than {self.above:g}")
        if self.maximum is not None:
            limits.append(f"{self.maximum} or less")
        inside = (
            (self.minimum is None or value >= self.minimum)
            and (self.above is None or value > self.above)
            and (self.maximum is None or value <= self.maximum)
        )
        if not inside:
            raise ValueError(f"must be {' and '.join(limits)}, not {_quoted(value)}")


_WORDS: Mapping[type, str] = MappingProxyType(
    {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
)


@cache
def setting_table() -> Mapping[str, Setting]:
    """Return every setting by name, in the order of listings."""
    hints = get_type_hints(Settings)
    rows = {}
    for row in dataclasses.fields(Settings):
        # `str | None` has the argument `str` first; a plain type has no arguments.
        kind = (get_args(hints[row.name]) or (hints[row.name],))[0]
        rows[row.name] = Setting(row.name, kind, cast(Value, row.default), **row.metadata)
    return MappingProxyType(rows)


def closest_name(name: str, names: Mapping[str, object]) -> str | None:
    """Return the one of *names* that *name* was probably meant to be, or None."""
    close = difflib.get_close_matches(name.lower().replace("-", "_"), names, n=1, cutoff=0.6)
    return close[0] if close else None


def _quoted(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text if len(text) <= 60 else text[:60] + '…'}`"
