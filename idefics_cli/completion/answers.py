"""Names of models and sessions, which the completion script of a shell asks for.

The user waits for this module after a press of TAB. So it imports only modules that Python loads at
its start anyway. `re` and `json` would add half of the start-up time of Python, and `pathlib` as
much again.

`models.hub.cache` and `chat.store` write the files that this module reads. Tests compare this
module with them.
"""

import os
import sys

from idefics_cli.completion.catalog import MODELS

# Type checkers treat a variable of this name as true. Importing it from `typing` would be slow.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

BUILT_IN = "demo"
_NEWEST_SESSIONS = 50
_TITLE_CHARACTERS = 60


def run(arguments: list[str]) -> None:
    """Write the completions and end the process: on each line a value, a tab and a note.

    Args:
        arguments: The kind (`models` or `sessions`) and the beginning of the value.
    """
    kind, start = (*arguments, "", "")[:2]
    answer = {"models": models, "sessions": sessions}.get(kind)
    rows = answer(start, os.environ) if answer else []
    text = "".join(f"{value}\t{_printable(note)}\n" for value, note in rows)
    try:  # noqa: SIM105 (contextlib is not loaded yet)
        os.write(1, text.encode("utf-8", "replace"))
    except OSError:
        pass  # the shell has closed the pipe
    # `os._exit` is quicker than an ordinary exit, and there is nothing to clean up.
    os._exit(0 if answer else 2)


def models(start: str, environ: "Mapping[str, str]") -> list[tuple[str, str]]:
    """Return the names of models that begin with *start*, each with its summary."""
    root = hub_cache_path(environ)
    rows = []
    for name, repo, summary in MODELS:
        if name.startswith(start):
            cached = repo != BUILT_IN and _is_cached(f"{root}/models--{repo.replace('/', '--')}")
            rows.append((name, f"downloaded; {summary}" if cached else summary))
    return rows


def sessions(start: str, environ: "Mapping[str, str]") -> list[tuple[str, str]]:
    """Return the names (or ids) of the latest sessions that begin with *start*."""
    folder = f"{data_folder_path(environ)}/sessions"
    found = []
    for file in _names(folder):
        key, dot, ending = file.partition(".")
        if dot and ending == "jsonl" and len(key) == 8:
            try:
                found.append((os.stat(f"{folder}/{file}").st_mtime, key))
            except OSError:
                continue
    found.sort(reverse=True)
    rows = [("last", "the last chat")] if found else []
    rows += [_session(f"{folder}/{key}.jsonl", key) for _, key in found[:_NEWEST_SESSIONS]]
    return [row for row in rows if row[0].startswith(start) and row[0].isprintable()]


def _session(path: str, key: str) -> tuple[str, str]:
    try:
        with open(path, "rb") as file:
            lines = file.read().split(b"\n")
    except OSError:
        return key, ""
    name, title = "", ""
    for line in lines:
        if line.startswith((b'{"event":"started"', b'{"event":"changed"')):
            # This matches only a key: inside a JSON text, each quotation mark follows a backslash.
            if b',"name":' in line:
                name = _text_after(line, b',"name":"')
        elif not title and line.startswith(b'{"event":"asked"'):
            title = " ".join(_text_after(line, b',"text":"').split())
    if len(title) > _TITLE_CHARACTERS:
        title = title[: _TITLE_CHARACTERS - 1] + "…"
    return name or key, title


def _text_after(line: bytes, mark: bytes) -> str:
    """Return the JSON text after *mark*; "" if there is none, for example for null."""
    _, found, rest = line.partition(mark)
    if not found:
        return ""
    parts: list[str] = []
    # In JSON, a pair of backslashes means one backslash, and any other backslash escapes the next
    # character. So the text is first split at the pairs.
    for piece in rest.decode("utf-8", "replace").split("\\\\"):
        piece = piece.replace('\\"', "\0").replace("\\n", " ").replace("\\t", " ")
        head, quote, _ = piece.partition('"')
        parts.append(head.replace("\0", '"'))
        if quote:
            break
    return "\\".join(parts)


def _is_cached(folder: str) -> bool:
    try:
        with open(f"{folder}/refs/main", encoding="utf-8") as file:
            commit = file.read().strip()
    except (OSError, ValueError):
        return False
    names = _names(f"{folder}/snapshots/{commit}") if commit else []
    return (
        "config.json" in names
        and _has_weights(names)
        and not {"tokenizer.json", "tokenizer.model", "vocab.json"}.isdisjoint(names)
        and not {"preprocessor_config.json", "processor_config.json"}.isdisjoint(names)
    )


def _has_weights(names: list[str]) -> bool:
    """Whether the file names *names* include all weights of a model.

    Large weights have several files. Each name has their number: `model-00001-of-00007`.
    """
    if "model.safetensors.index.json" not in names:
        return "model.safetensors" in names
    parts = [name for name in names if "-of-" in name and name.endswith(".safetensors")]
    counts = {name[: -len(".safetensors")].rpartition("-of-")[2] for name in parts}
    return len(counts) == 1 and counts == {f"{len(parts):05}"}


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def hub_cache_path(environ: "Mapping[str, str]") -> str:
    """Return the path of the Hub cache, as `core.paths.hub_cache` does."""
    base = environ.get("XDG_CACHE_HOME", os.path.join("~", ".cache"))
    home = environ.get("HF_HOME", os.path.join(base, "huggingface"))
    cache = environ.get("HUGGINGFACE_HUB_CACHE", os.path.join(home, "hub"))
    return os.path.expandvars(os.path.expanduser(environ.get("HF_HUB_CACHE", cache)))


def data_folder_path(environ: "Mapping[str, str]") -> str:
    """Return the path of the data folder of this program, as `core.paths.data_folder` does."""
    base = environ.get("XDG_DATA_HOME", "")
    if not (base and os.path.isabs(base)):
        base = os.path.join(environ.get("HOME") or "/", ".local/share")
    return os.path.join(base, "idefics")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


if __name__ == "__main__":
    run(sys.argv[1:])
