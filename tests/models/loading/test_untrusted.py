"""Folders from strangers: their code never runs, and memory that runs out is reported as that."""

from __future__ import annotations

import builtins
import errno
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from idefics_cli.cli.services import Services
from idefics_cli.core.errors import MemoryLimitError, ModelError
from idefics_cli.core.types import LoadSpec
from idefics_cli.models.loading.errors import library_errors
from tests.support import machines
from tests.support.commands import run
from tests.support.pictures import quadrants

_CODE = "import os\nopen(os.environ['RAN'], 'w').write('x')\nclass Evil: pass\n"
_COMMANDS = (
    ("ask", "-m", "MODEL", "--max-new-tokens", "2", "-i", "PICTURE", "What is it?"),
    ("chat", "-m", "MODEL", "--max-new-tokens", "2", "-i", "PICTURE", "--no-save"),
    ("caption", "-m", "MODEL", "--max-new-tokens", "2", "PICTURE"),
    ("doctor", "-m", "MODEL"),
    ("models", "path", "MODEL"),
    ("models", "quantize", "MODEL", "--quantization", "8bit"),
)


# Where the tokenizer loads, a benchmark would run to its end, which takes long.
_BENCH = ("bench", "caption", "-m", "MODEL", "--quick")
_CASES = [
    *((kind, command) for kind in ("idefics2", "idefics3") for command in _COMMANDS),
    ("idefics", _COMMANDS[0]),
    ("smolvlm2", _COMMANDS[0]),
    ("idefics3", _BENCH),
]


def write_hostile(folder: Path, source: Path) -> None:
    """Copy *source* to *folder* with code of its own wherever transformers looks for it."""
    shutil.copytree(source, folder)
    (folder / "evil.py").write_text(_CODE)
    autos = ("AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoProcessor",
             "AutoImageProcessor", "AutoTokenizer")  # fmt: skip
    added: dict[str, object] = {"auto_map": dict.fromkeys(autos, "evil.Evil")}
    for name in ("config.json", "preprocessor_config.json", "processor_config.json"):
        path = folder / name
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**content, **added}))
    path = folder / "tokenizer_config.json"
    added = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **added}))
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate/generate.py").write_text(_CODE)


@pytest.mark.parametrize(
    ("kind", "command"), _CASES, ids=lambda value: value if isinstance(value, str) else value[0]
)
def test_the_code_in_a_folder_never_runs(
    kind: str,
    command: tuple[str, ...],
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "hostile"
    write_hostile(folder, checkpoint(kind))
    ran, asked = tmp_path / "ran", tmp_path / "asked"

    def answer_yes(question: str = "") -> str:
        asked.write_text(question)
        return "y"

    monkeypatch.setenv("RAN", str(ran))
    monkeypatch.setattr(builtins, "input", answer_yes)
    picture = tmp_path / "a.png"
    quadrants().save(picture)
    names = {"MODEL": str(folder), "PICTURE": str(picture)}
    services = Services(stdin=io.BytesIO(b"y\n"), probe=lambda: machines.cpu(24, cores=2))
    done = run(*(names.get(word, word) for word in command), services=services)
    assert not ran.exists()
    assert not asked.exists()
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("std::bad_alloc"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 GB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        torch.OutOfMemoryError("CUDA out of memory."),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        Exception("Error while deserializing header: Cannot allocate memory (os error 12)"),
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    ("device", "quantization", "hint"),
    [
        ("cpu", "none", "try `--quantization 4bit`, a smaller model or more free memory"),
        ("cpu", "4bit", "try a smaller model or more free memory"),
        ("cuda", "4bit", "try a smaller model or `--device cpu`"),
    ],
)
def test_memory_that_runs_out_while_loading_is_reported_as_that(
    error: Exception, device: str, quantization: str, hint: str
) -> None:
    spec = LoadSpec(repo="/m", family="idefics2", device=device, quantization=quantization)  # type: ignore[arg-type]  # a member of the Literal
    with pytest.raises(MemoryLimitError) as caught, library_errors(spec):
        raise error
    assert str(caught.value) == f"`/m` does not fit the memory of {device}"
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("division by zero"), RecursionError(), KeyError("a")]
)
def test_what_a_library_raises_for_a_file_is_an_error_of_ours(error: Exception) -> None:
    spec = LoadSpec(repo="/m", family="idefics2")
    message = f"cannot load `/m`: {type(error).__name__}"
    with pytest.raises(ModelError, match=message) as caught, library_errors(spec):
        raise error
    assert "damaged" in str(caught.value.hint)
