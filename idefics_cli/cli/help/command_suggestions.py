"""Suggestions for unknown commands."""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from idefics_cli.config.settings import setting_table
from idefics_cli.models.hub.registry import MODELS

# Hints for words that are commands of other tools or that people try. The outer key is the command
# that precedes such a word.
_SUGGESTIONS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "idefics": {
            "describe": "`idefics caption PICTURES`",
            "captions": "`idefics caption PICTURES`",
            "tag": "`idefics caption PICTURES`",
            "label": "`idefics caption PICTURES`",
            "run-batch": "`idefics batch REQUESTS.jsonl -o ANSWERS.jsonl`",
            "question": "`idefics ask QUESTION`",
            "prompt": "`idefics ask QUESTION`",
            "query": "`idefics ask QUESTION`",
            "generate": "`idefics ask QUESTION`",
            "server": "`idefics serve -m MODEL`",
            "api": "`idefics serve -m MODEL`",
            "run": "`idefics chat -m MODEL`",
            "talk": "`idefics chat`",
            "repl": "`idefics chat`",
            "shell": "`idefics chat`",
            "pull": "`idefics models pull MODEL`",
            "download": "`idefics models pull MODEL`",
            "install": "`idefics models pull MODEL`",
            "model": "`idefics models`",
            "list": "`idefics models` lists the models",
            "ls": "`idefics models` lists the models",
            "history": "`idefics sessions`",
            "chats": "`idefics sessions`",
            "resume": "`idefics chat -c`",
            "continue": "`idefics chat -c`",
            "settings": "`idefics config`",
            "set": "`idefics config`",
            "version": "`idefics --version`",
            "status": "`idefics doctor`",
            "check": "`idefics doctor`",
            "info": "`idefics doctor`",
            "benchmark": "`idefics bench`",
            "completions": "`idefics completion`",
            "test": "`idefics doctor`",
            "export": "`idefics sessions export NAME`",
            "login": "`hf auth login`, for models that ask for it",
            "update": "`pip install --upgrade idefics-cli`",
            "upgrade": "`pip install --upgrade idefics-cli`",
            "uninstall": "`pip uninstall idefics-cli`",
            "quit": "this is the shell; `idefics chat` begins a chat",
            "exit": "this is the shell; `idefics chat` begins a chat",
        },
        "idefics models": {
            "list": "`idefics models` lists the models",
            "ls": "`idefics models` lists the models",
            "show": "`idefics doctor -m MODEL`",
            "info": "`idefics doctor -m MODEL`",
            "download": "`idefics models pull MODEL`",
            "install": "`idefics models pull MODEL`",
            "get": "`idefics models pull MODEL`",
            "where": "`idefics models path MODEL`",
            "rm": "`hf cache rm model/OWNER/ID`; other tools share that cache",
            "remove": "`hf cache rm model/OWNER/ID`; other tools share that cache",
            "delete": "`hf cache rm model/OWNER/ID`; other tools share that cache",
        },
        "idefics config": {
            "list": "`idefics config`",
            "show": "`idefics config`",
            "get": "`idefics config`",
            "set": "`idefics config path` names the file to edit",
            "edit": '`"$EDITOR" "$(idefics config path)"`',
        },
        "idefics sessions": {
            "ls": "`idefics sessions list`",
            "delete": "`idefics sessions rm NAME`",
            "remove": "`idefics sessions rm NAME`",
            "clear": "`idefics sessions prune`",
            "open": "`idefics chat --session NAME`",
            "resume": "`idefics chat --session NAME`",
        },
    }
)


def suggest_command(group: str, words: Sequence[str], commands: Sequence[str]) -> str | None:
    """Return a hint on what to type instead of *words*; None if there is no suggestion.

    Args:
        group: The group of commands, such as "idefics models".
        words: The words after the group; the first is not one of *commands*.
        commands: The names of the commands in the group.
    """
    word = words[0]
    if hint := _SUGGESTIONS.get(group, {}).get(word.lower()):
        return _fill(hint, words[1:])
    if near := difflib.get_close_matches(word.lower(), commands, n=1, cutoff=0.6):
        return f"did you mean `{' '.join([group, near[0], *words[1:]])}`?"
    if group == "idefics":
        return _suggest_for_input(words)
    return _suggest_for_model(group, word) or _suggest_for_setting(group, word)


def _fill(hint: str, rest: Sequence[str]) -> str:
    """Return *hint* with the typed words *rest* in place of a placeholder such as MODEL."""
    if not rest:
        return hint
    return re.sub("MODEL|PICTURES|NAME|QUESTION", lambda _: shlex.join(rest), hint)


def _suggest_for_input(words: Sequence[str]) -> str | None:
    first = words[0]
    files = [word for word in words if os.path.exists(word)]
    if re.match(r"https?://", first, re.IGNORECASE):
        return f'`idefics ask "What is in it?" -i {shlex.quote(first)}`'
    if re.fullmatch(r"[^*?[]*[*?[]\S*\.\w+", first):
        return (
            f"no picture matches `{first}` here; `idefics caption FOLDER` captions a whole folder"
        )
    if os.path.isdir(first):
        return f"`idefics caption {shlex.quote(first)}` captions the pictures in it"
    if os.path.isfile(first):
        return (
            f'`idefics ask "What is in it?" -i {shlex.quote(first)}`, '
            f"or `idefics caption {shlex.join(files)}`"
        )
    if first in MODELS or first.count("/") == 1:
        return f"`idefics chat -m {shlex.quote(first)}`"
    if " " in first or first.endswith("?"):
        pictures = files or ["PICTURE"]
        images = " ".join(f"-i {shlex.quote(picture)}" for picture in pictures)
        return f"`idefics ask {shlex.quote(first)} {images}`"
    return None


def _suggest_for_model(group: str, word: str) -> str | None:
    if group == "idefics models" and (word in MODELS or word.count("/") == 1):
        return f"`idefics models pull {word}` downloads it, `idefics doctor -m {word}` describes it"
    return None


def _suggest_for_setting(group: str, word: str) -> str | None:
    name = word.partition("=")[0]
    if group == "idefics config" and name.replace("-", "_") in setting_table():
        return f"`idefics config` shows `{name}`; `idefics config path` names the file to edit"
    if group == "idefics completion" and word in ("bash", "zsh", "fish", "powershell"):
        return f"`idefics completion install {word}`"
    return None
