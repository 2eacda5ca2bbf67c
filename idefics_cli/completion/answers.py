"""The values that a shell cannot know: names of models and of sessions.

Asked at a press of TAB, so nothing is imported that Python has not loaded at its start: `re` and
`json` alone would take half as long as all of Python, and `pathlib` as long. What is read here is
written by `models.cache` and `chat.store`; the tests hold the two sides together.
"""

import os
import sys

from idefics_cli.completion.catalog import MODELS

# What type checkers take for true; the real one is in `typing`, which is slow to import.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_BUILT_IN = "demo"
_NEWEST_SESSIONS = 50
_TITLE_CHARACTERS = 60


def run(arguments: list[str]) -> None:
    """Write what completes and end the process: on each line a value, a tab and a note.

    Args:
        arguments: The kind, `models` or `sessions`, and the beginning of the value.
    """
    kind, start = (*arguments, "", "")[:2]
    answer = {"models": models, "sessions": sessions}.get(kind)
    rows = answer(start, os.environ) if answer else []
    text = "".join(f"{value}\t{_printable(note)}\n" for value, note in rows)
    try:  # noqa: SIM105 (contextlib is not loaded yet)
        os.write(1, text.encode("utf-8", "replace"))
    except OSError:
        pass  # the shell has lost interest
    # There is nothing to tidy up, and Python would take a while to find that out.
    os._exit(0 if answer else 2)


def models(start: str, environ: "Mapping[str, str]") -> list[tuple[str, str]]:
    """Return the names of models that begin with *start*, each with what is known of it."""
    root = _hub_cache(environ)
    rows = []
    for name, repo, summary in MODELS:
        if name.startswith(start):
            cached = repo != _BUILT_IN and _is_cached(f"{root}/models--{repo.replace('/', '--')}")
            rows.append((name, f"downloaded; {summary}" if cached else summary))
    return rows


def sessions(start: str, environ: "Mapping[str, str]") -> list[tuple[str, str]]:
    """Return the names, or else ids, of the last sessions that begin with *start*."""
    folder = f"{_data_folder(environ)}/sessions"
    found = []
    for file in _names(folder):
        key, dot, ending = file.partition(".")
        if dot and ending == "jsonl" and len(key) == 8:
            try:
                found.append((os.stat(f"{folder}/{file}").st_mtime, key))
            except OSError:
                continue
    found.sort(reverse=True)
    rows = [("last", "the last one")] if found else []
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
            # A quotation mark inside a JSON text has a backslash before it, so this is a key.
            if b',"name":' in line:
                name = _text_after(line, b',"name":"')
        elif not title and line.startswith(b'{"event":"asked"'):
            title = " ".join(_text_after(line, b',"text":"').split())
    return name or key, title[:_TITLE_CHARACTERS]


def _text_after(line: bytes, mark: bytes) -> str:
    """Return the JSON text that follows *mark*; "" if there is none, as for null."""
    _, found, rest = line.partition(mark)
    if not found:
        return ""
    parts: list[str] = []
    # Between pairs of backslashes, a backslash escapes what follows it.
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
    """Whether all parts are among *names*; they count themselves: model-00001-of-00007."""
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


def _hub_cache(environ: "Mapping[str, str]") -> str:
    """Return what `huggingface_hub.constants.HF_HUB_CACHE` would be."""
    base = environ.get("XDG_CACHE_HOME", os.path.join("~", ".cache"))
    home = environ.get("HF_HOME", os.path.join(base, "huggingface"))
    cache = environ.get("HUGGINGFACE_HUB_CACHE", os.path.join(home, "hub"))
    return os.path.expandvars(os.path.expanduser(environ.get("HF_HUB_CACHE", cache)))


def _data_folder(environ: "Mapping[str, str]") -> str:
    """Return what `core.paths.data_folder` would."""
    base = environ.get("XDG_DATA_HOME", "")
    if not (base and os.path.isabs(base)):
        base = os.path.join(environ.get("HOME") or "/", ".local/share")
    return os.path.join(base, "idefics")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


if __name__ == "__main__":
    run(sys.argv[1:])
