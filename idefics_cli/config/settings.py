"""The table of settings: each has a default, a help text, a check, a flag and a variable."""

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

from idefics_cli.core.types import Attention, DtypeName, ImageLimits, Quantization, Sampling

DEFAULT_MODEL = "smolvlm-500m"  # small enough for any machine; a download of 1 GB
ANSWER_TOKENS = 512
CAPTION_TOKENS = 256

Value = str | int | float | bool | None
T = TypeVar("T")

_IMAGES = ImageLimits()
_SAMPLING = Sampling()
_FLOAT_BITS = 1023
_SHOWN_BITS = 10_000
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


def _setting(default: T, **rule: object) -> T:
    return dataclasses.field(default=default, metadata=rule)


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting with its default. A default of None means that the program decides."""

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
    offline: bool = _setting(
        False, help="Do not use the network.", also_variables=("HF_HUB_OFFLINE",)
    )
    threads: int | None = _setting(
        # torch crashes if the system refuses to start that many threads.
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
    )
    top_p: float = _setting(
        _SAMPLING.top_p,
        help="Sample from the likeliest tokens up to this total probability.",
        above=0,
        maximum=1,
    )
    top_k: int = _setting(
        _SAMPLING.top_k, help="Sample from this many of the likeliest tokens; 0 is all.", minimum=0
    )
    repetition_penalty: float = _setting(
        _SAMPLING.repetition_penalty, help="Values above 1 discourage repetition.", above=0
    )
    max_new_tokens: int | None = _setting(
        None,
        help="Limit the answer to this number of tokens.",
        minimum=1,
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
    raw: bool = _setting(
        False,
        help="Complete PROMPT without a chat template; each `<image>` in it is the next picture.",
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
    batch_size: int | None = _setting(
        None,
        help="Number of pictures to caption at the same time.",
        minimum=1,
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
        False, help="The same as `--existing overwrite`.", command_line_only=True
    )
    full_names: bool = _setting(
        False, help="Name text files `a.jpg.txt`, so that `a.png` gets a file of its own."
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
        False, help="Caption only the pictures that failed before.", command_line_only=True
    )
    failures: str | None = _setting(
        None,
        help="List the failed pictures in this file, for `--filelist`.",
        unset="beside the output",
    )
    fail_fast: bool = _setting(False, help="Stop the run at the first failed picture.")
    max_failures: int | None = _setting(
        None, help="Stop the run when more pictures than this fail.", minimum=0, unset="never"
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
    save: bool = _setting(True, help="Store each turn of the chat on disk.")
    yes: bool = _setting(False, help="Download a model without asking.", command_line_only=True)
    dry_run: bool = _setting(
        False,
        help="Print what would run, and why; only `caption` loads the model, if it is downloaded.",
        command_line_only=True,
    )
    verbose: bool = _setting(False, help="Also show the messages of the libraries.")
    quiet: bool = _setting(False, help="Show errors only.")


@dataclass(frozen=True, slots=True)
class Setting:
    """The description of one field of `Settings`.

    Attributes:
        name: Field of `Settings`, key in `config.toml` and parameter of a command.
        kind: Type of the value.
        default: Default value; None if the program decides.
        help: One sentence for `--help`.
        unset: Meaning of None, for people; empty if None has no special meaning.
        choices: All allowed texts; empty if any text is allowed.
        pattern: Regular expression of the allowed texts.
        expects: Description of *pattern*, for people.
        minimum: Least allowed number.
        above: The number must be larger than this.
        maximum: Greatest allowed number.
        also_variables: Environment variables of other programs with the same meaning.
        command_line_only: Whether neither a variable nor the configuration file may set it,
            because it is a decision about a single call.
        command_line_values: The values that neither a variable nor the file may give.
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
    command_line_values: tuple[Value, ...] = ()

    @property
    def flag(self) -> str:
        """The long option, such as `--top-p`."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable, such as `IDEFICS_TOP_P`."""
        return f"IDEFICS_{self.name.upper()}"

    @property
    def expectation(self) -> str:
        """The allowed texts, for people; "" if any text is allowed."""
        if not self.choices:
            return self.expects
        return ", ".join(self.choices[:-1]) + " or " + self.choices[-1]

    @property
    def words(self) -> tuple[str, ...]:
        """The texts for shell completion: the choices, or the allowed words of *expects*."""
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
        """Return *value* with the type of this setting.

        Raises:
            ValueError: If *value* has another type or is out of range. The message is the end of
                a sentence that begins with the name of the setting: "must be 0 or more, not -1".
        """
        if self.kind is float and type(value) is int:
            # An integer that no float can hold becomes infinite, as 1e999 does.
            value = float(value) if value.bit_length() <= _FLOAT_BITS else math.inf
        # isinstance(True, int) is True, but a number must not be a bool.
        if type(value) is not self.kind:
            raise ValueError(f"must be {_WORDS[self.kind]}, not {_quoted(value)}")
        if isinstance(value, str):
            self._check_text(value)
        elif not isinstance(value, bool):
            self._check_number(cast(float, value))
        return cast(Value, value)

    def parse(self, text: str) -> Value:
        """Return the value of *text*, which comes from a flag or a variable.

        Raises:
            ValueError: See `check`.
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
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"must be a finite number, not {_quoted(value)}")
        inside = (
            (self.minimum is None or value >= self.minimum)
            and (self.above is None or value > self.above)
            and (self.maximum is None or value <= self.maximum)
        )
        if not inside:
            raise ValueError(f"must be {self._range}, not {_quoted(value)}")

    @property
    def _range(self) -> str:
        """The numbers that are allowed, for people."""
        if self.above is not None:
            end = "" if self.maximum is None else f" and at most {self.maximum}"
            return f"more than {self.above:g}{end}"
        if self.maximum is None:
            return f"{self.minimum:g} or more"
        return f"from {self.minimum:g} to {self.maximum}"


_WORDS: Mapping[type, str] = MappingProxyType(
    {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
)


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


def _quoted(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > _SHOWN_BITS:
        return "a number of thousands of digits"  # which Python refuses to write
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text if len(text) <= 60 else text[:60] + '…'}`"
