"""One setting: its type, its allowed values, and its flag and variable."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

from idefics_cli.core.text import or_list

Value = str | int | float | bool | None

_FLOAT_BITS = 1023
_SHOWN_BITS = 10_000
_VERY_LARGE = 1_000_000
# Names that other programs use for our choices.
_SYNONYMS: Mapping[str, str] = MappingProxyType(
    {"fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32", "nf4": "4bit"}
)
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


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
        expects: Description of *pattern*, for people. Examples follow "such as".
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
        return or_list(self.choices)

    @property
    def words(self) -> tuple[str, ...]:
        """The texts for shell completion: the choices, or the allowed words of *expects*."""
        if self.choices or not self.pattern:
            return self.choices
        examples = self.expects.rpartition("such as ")[2]
        named = dict.fromkeys(re.findall(r"[\w-]+", examples))
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
            meant = _SYNONYMS.get(value.lower(), value.lower())
            close = difflib.get_close_matches(meant, self.choices, n=1)
            guess = f"; did you mean `{close[0]}`?" if close else ""
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
            raise ValueError(f"must be {self._range(value)}, not {_quoted(value)}")

    def _range(self, value: float) -> str:
        """The allowed numbers in words, for the error about *value*."""
        if self.above is not None:
            end = "" if self.maximum is None else f" and at most {self.maximum}"
            return f"more than {self.above:g}{end}"
        # For a number that is too small, a very large maximum says nothing.
        if self.maximum is None or (value < self.maximum and self.maximum >= _VERY_LARGE):
            return f"{self.minimum:g} or more"
        return f"from {self.minimum:g} to {self.maximum}"


_WORDS: Mapping[type, str] = MappingProxyType(
    {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
)


def _quoted(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > _SHOWN_BITS:
        return "a number of thousands of digits"  # which Python refuses to write
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text if len(text) <= 60 else text[:60] + '…'}`"
