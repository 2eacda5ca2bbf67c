"""Suggestions for unknown options and for words that a command does not take."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from types import MappingProxyType

from idefics_cli.core.errors import UsageError
from idefics_cli.models.hub.registry import MODELS

_QUESTION = "the question has no option: `idefics ask QUESTION -i PICTURE`"
_PICTURE = "`-i PICTURE`, once for each picture"
_PICTURES = "pictures need no option: `idefics caption photos/ -r`"
_REQUESTS = "the file has no option: `idefics batch requests.jsonl -o answers.jsonl`"
_OWN_PROMPT = "each request has its prompt; `idefics caption -p TEXT` asks about many pictures"
_ROUNDS = "`--epochs X` sets how often each row is learned"
_FEW = "name fewer pictures, such as `photos/a*.jpg`, or give a list with `--filelist`"
# An option is suggested only if its likeness to the unknown option is at least this. The likeness
# is 1 for equal names and 0 for names without a common letter (difflib).
_LEAST_LIKENESS = 0.65
# An option of this likeness is a slip of the keyboard, even if another command has the unknown one.
_SLIP = 0.85
_MOST_COMMANDS = 2  # that a hint names
_FILE = "`idefics config path` names the file to edit"

# Hints for options that other tools have or that people try. The outer key is the command; the
# hints of the key "" apply to every command.
_SUGGESTIONS: Mapping[str, Mapping[str, str]] = MappingProxyType(
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
            "--resume": "`-c` continues the last chat",
            "--last": "`-c` continues the last chat",
        },
        "idefics caption": {
            **dict.fromkeys(("-i", "--image", "--images", "--input", "--dir"), _PICTURES),
            **dict.fromkeys(("-n", "--limit", "--max"), _FEW),
            "--resume": "no option is needed: the same command continues the run",
            **dict.fromkeys(("--json", "--jsonl"), "`--format jsonl` writes JSON lines"),
        },
        "idefics batch": {
            **dict.fromkeys(("-i", "--input", "--input-file", "--file", "--requests"), _REQUESTS),
            **dict.fromkeys(("-p", "--prompt", "--ask"), _OWN_PROMPT),
            **dict.fromkeys(
                ("-f", "--format", "--json"), "answers are JSON lines: `-o answers.jsonl`"
            ),
            "--resume": "no option is needed: the same command continues the run",
        },
        "idefics tune": {
            **dict.fromkeys(("--steps", "--max-steps", "--iterations", "--iters"), _ROUNDS),
            "--lr": "`--learning-rate`",
        },
        "idefics models": {"--pull": "`idefics models pull NAME`"},
        "idefics config": {"--set": _FILE, "--edit": _FILE},
    }
)
# Hints for extra words after a command.
_EXTRA_WORDS = MappingProxyType(
    {
        "idefics ask": "put the prompt into quotes, and `-i` before each picture",
        "idefics chat": "pipe the question in; `-i` before each picture",
        "idefics batch": "one file at a time: `cat *.jsonl | idefics batch -` answers several",
        "idefics models pull": "one model at a time",
    }
)
# Word processors and web pages replace a hyphen with one of these characters.
_LONG_DASH = re.compile("[\u2010-\u2015\u2212]+(?=[A-Za-z])")


def suggest_option(
    command: str,
    option: str,
    possible: Iterable[str],
    owners: Callable[[str], Sequence[str]] = lambda option: (),
) -> str | None:
    """Return a hint for the unknown *option* of *command*; None if there is no suggestion.

    Args:
        command: The command, such as "idefics ask".
        option: What the user typed, with its dashes.
        possible: The options of the command.
        owners: Returns the commands that have an option.
    """
    if known := _SUGGESTIONS.get(command, {}).get(option) or _SUGGESTIONS[""].get(option):
        return known
    scores = _scores(option, possible)
    best = max(scores.values(), default=0.0)
    if best < _SLIP and (others := owners(option)):
        return f"`{option}` is an option of {_named(others)}"
    near = [name for name, score in scores.items() if score >= max(_LEAST_LIKENESS, best - 0.1)]
    near.sort(key=lambda name: (-scores[name], name))
    return f"did you mean {' or '.join(near)}?" if near else None


def _scores(option: str, possible: Iterable[str]) -> dict[str, float]:
    """Return the likeness of each *possible* option to *option*.

    Typer compares options with their dashes, and these alone make `--check` similar to `--help`.
    """
    matcher = SequenceMatcher()
    matcher.set_seq2(option.lstrip("-"))
    scores = {}
    for name in possible:
        matcher.set_seq1(name.lstrip("-"))
        scores[name] = matcher.ratio()
    return scores


def _named(commands: Sequence[str]) -> str:
    names = [f"`{name}`" for name in commands[:_MOST_COMMANDS]]
    if len(commands) > len(names):
        return f"{', '.join(names)} and other commands"
    return " and ".join(names)


def suggest_for_words(command: str, words: Sequence[str]) -> str | None:
    """Return a hint for *words*, which *command* does not take."""
    models = [word for word in words if word in MODELS]
    if models and command in ("idefics ask", "idefics chat", "idefics batch", "idefics doctor"):
        return f"`-m {models[0]}` chooses the model"
    return _EXTRA_WORDS.get(command)


def check_dashes(words: Sequence[str]) -> None:
    """Refuse an option that begins with a typographic dash instead of a hyphen.

    Such a dash comes from copying a command out of a document.

    Raises:
        UsageError: If there is such a word, and it is not the name of a file.
    """
    for word in words:
        if (dash := _LONG_DASH.match(word)) and " " not in word and not os.path.exists(word):
            rest = word[dash.end() :]
            option = f"-{rest}" if len(rest) == 1 else f"--{rest}"
            raise UsageError(
                f"`{word}` begins with a typographic dash, not with a hyphen",
                hint=f"type `{shlex.quote(option)}`",
            )
