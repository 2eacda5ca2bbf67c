"""The conversion of errors that libraries raise while a model loads to errors of this package."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager

import torch

from idefics_cli.core.errors import IdeficsError, MemoryLimitError, ModelError, PlanError
from idefics_cli.core.types import LoadSpec

# These parts of messages mean "out of memory" in errors that have no class of their own. They come
# from torch's CPU allocator, Metal, C++, the memory map of safetensors, cuBLAS and cuDNN, and on
# ROCm from the libraries that replace the last two (torch 2.13, safetensors 0.7).
_NO_MEMORY = ("allocate memory", "out of memory", "bad_alloc", "alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether *error* means that the memory of a device ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    text = str(error).lower()
    return any(words in text for words in _NO_MEMORY)


@contextmanager
def library_errors(spec: LoadSpec) -> Iterator[None]:
    """Turn errors of libraries in the `with` block, which loads *spec*, into an `IdeficsError`."""
    try:
        yield
    except (IdeficsError, CancelledError):
        raise
    except Exception as error:  # libraries raise any class for a damaged or strange file
        raise _loading_error(error, spec) from error


def _loading_error(error: Exception, spec: LoadSpec) -> IdeficsError:
    """Return our error for *error*, which a library raised while it loaded *spec*."""
    name = spec.name or spec.repo
    if is_out_of_memory(error):
        return _memory_error(spec)
    if isinstance(error, ImportError | RuntimeError) and "torchvision" in str(error):
        return ModelError(
            "the installed torchvision does not match torch",
            hint="`pip uninstall torchvision` (it is not needed), or install the matching one",
        )
    if isinstance(error, ImportError) and "FlashAttention" in str(error):
        return PlanError(
            f"the plan for `{name}` names {spec.attention}, whose package is not installed",
            hint="`sdpa` needs nothing and is exact",
        )
    if "trust_remote_code" in str(error):
        return ModelError(
            f"`{name}` brings its own Python code, which this tool never runs",
            hint="take a checkpoint whose classes are those of transformers",
        )
    if "ignore_mismatched_sizes" in str(error):
        return ModelError(
            f"the weights of `{name}` have other shapes than its config.json says",
            hint="copy config.json and the weights from one checkpoint",
        )
    return ModelError(
        f"cannot load `{name}`: {_describe(error)}",
        hint=f"its files may be damaged or incomplete; {fetch_again(spec)}",
    )


def fetch_again(spec: LoadSpec) -> str:
    """Return a clause that says how the user gets the files of *spec* once more."""
    if spec.repo.startswith("/"):
        return "copy or download them again"
    return "`idefics models pull` fetches them again"


def _memory_error(spec: LoadSpec) -> MemoryLimitError:
    ways = ["a smaller model"]
    if spec.quantization != "4bit":
        ways.insert(0, "`--quantization 4bit`")
    ways.append("more free memory" if spec.device == "cpu" else "`--device cpu`")
    return MemoryLimitError(
        f"`{spec.name or spec.repo}` does not fit the memory of {spec.device}",
        hint=f"try {', '.join(ways[:-1])} or {ways[-1]}",
    )


def _describe(error: Exception) -> str:
    """Return the first line of *error*, with the name of its class if the text is not enough."""
    lines = str(error).strip().splitlines()
    text = lines[0][:300] if lines else ""
    if isinstance(error, OSError | ValueError | RuntimeError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
