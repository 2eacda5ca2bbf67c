"""What somebody meant who gave an option, or a word, that a command does not take."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from idefics_cli.core.errors import UsageError
from idefics_cli.models.hub.registry import MODELS

_QUESTION = "the question has no option: `idefics ask QUESTION -i PICTURE`"
_PICTURE = "`-i PICTURE`, once for each"
_PICTURES = "pictures have no option: `idefics caption photos/ -r`"
_FEW = "name some, as `photos/a*.jpg`; `--filelist` takes a list"
_FILE = "`idefics config path` names the file to edit"

# Of other tools, and of people, by the command; "" is every one.
_MEANT: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "": {
            "--cpu": "`--device cpu`",
            "--gpu": "`--device cuda`",
            "--cuda": "`--device cuda`",
            "--temp": "`--temperature`",
            "--4bit": "`--quantization 4bit`",
            "--load-in-4bit": "`--quantization 4bit`",
            "--8bit": "`--quantization 8bit`",
            "--load-in-8bit": "`--quantization 8bit`",
            "--fp16": "`--dtype float16`",
            "--bf16": "`--dtype bfloat16`",
            "--fp32": "`--dtype float32`",
            "--max-tokens": "`--max-new-tokens`",
            "--language": "ask for it in the prompt: `Answer in French.`",
            "--lang": "ask for it in the prompt: `Answer in French.`",
        },
        "idefics ask": {
            **dict.fromkeys(("-p", "-q", "--prompt", "--question", "--text"), _QUESTION),
            **dict.fromkeys(("-f", "--file", "--picture", "--photo", "--input"), _PICTURE),
        },
        "idefics chat": {
            **dict.fromkeys(("-p", "--prompt", "--question"), "pipe the question in"),
            **dict.fromkeys(("-f", "--file", "--picture", "--photo", "--input"), _PICTURE),
            "--resume": "`-c` goes on with the last chat",
            "--last": "`-c` goes on with the last chat",
        },
        "idefics caption": {
            **dict.fromkeys(("-i", "--image", "--images", "--input", "--dir"), _PICTURES),
            **dict.fromkeys(("-n", "--limit", "--max"), _FEW),
            "--resume": "no option is needed: the same command goes on where it was",
        },
        "idefics models": {"--pull": "`idefics models pull NAME`"},
        "idefics config": {"--set": _FILE, "--edit": _FILE},
    }
)
# For words beyond those that a command takes.
_EXTRA = MappingProxyType(
    {
        "idefics ask": "put the prompt into quotes, and `-i` before each picture",
        "idefics chat": "pipe the question in; `-i` before each picture",
        "idefics models pull": "one model at a time",
    }
)
# What word processors and web pages make of a hyphen.
_LONG_DASH = re.compile("[\u2010-\u2015\u2212]+(?=[A-Za-z])")


def meant_option(command: str, option: str) -> str | None:
    """Return what to give instead of *option* of *command*, as "idefics ask"."""
    return _MEANT.get(command, {}).get(option) or _MEANT[""].get(option)


def meant_words(command: str, words: Sequence[str]) -> str | None:
    """Return what to do with *words*, which *command* does not take."""
    models = [word for word in words if word in MODELS]
    if models and command in ("idefics ask", "idefics chat", "idefics doctor"):
        return f"`-m {models[0]}` chooses the model"
    return _EXTRA.get(command)


def check_dashes(words: Sequence[str]) -> None:
    """Refuse an option whose hyphen became a dash when it was copied from somewhere.

    Raises:
        UsageError: If there is one, and no file of that name.
    """
    for word in words:
        if (dash := _LONG_DASH.match(word)) and " " not in word and not os.path.exists(word):
            rest = word[dash.end() :]
            option = f"-{rest}" if len(rest) == 1 else f"--{rest}"
            raise UsageError(
                f"`{word}` begins with a dash of printed text, which no option does",
                hint=f"type `{shlex.quote(option)}`",
            )
