"""Checks and sizes of the weights of a checkpoint, from the headers of their files; no torch."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from idefics_cli.core.errors import ModelError
from idefics_cli.core.json_text import parse_json
from idefics_cli.core.types import DtypeName
from idefics_cli.models.families.geometry import Json, section
from idefics_cli.models.hub import cache
from idefics_cli.models.hub.errors import no_safetensors

# The format allows headers of 100 MB, but that of a model of 80 B parameters has only 0.2 MB.
_LARGEST_HEADER = 2**25
# The smallest numbers of the format have four bits, so a byte holds at most two of them.
_NUMBERS_PER_BYTE = 2
STORED_DTYPES: Mapping[str, DtypeName] = MappingProxyType(
    {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
)
"""The dtypes in which models run, by their names in safetensors files."""
_PEFT_PREFIX = "base_model.model."
_LORA = re.compile(r"\.(lora_[AB]|lora_embedding_[AB]|base_layer)\.")


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of a checkpoint, by the headers of their files.

    Attributes:
        parameters: Number of stored numbers. If several quantized weights are packed into one
            number, they count once.
        size_bytes: Size of all files.
        dtype: Dtype of all weights; None if they have several, or one that this tool does not run.
    """

    parameters: int
    size_bytes: int
    dtype: DtypeName | None = None


def read_weights(folder: Path, name: str) -> Weights:
    """Return the weights in *folder*, from the headers of their files.

    Raises:
        ModelError: If files are missing, cut short, in another format, or made by a program
            whose weights transformers does not read.
    """
    if (folder / "adapter_config.json").exists():
        # Without the package peft, transformers would ignore the adapter, without a warning.
        raise adapter_error(name)
    paths = weight_paths(folder, name)
    headers = [read_header(path, name) for path in paths]
    if any(section(header, "__metadata__").get("format") == "mlx" for header in headers):
        raise mlx_error(name)
    _check_names((key for header in headers for key in header), name)
    return Weights(
        parameters=sum(_count_numbers(header) for header in headers),
        size_bytes=sum(path.stat().st_size for path in paths),
        dtype=_common_dtype(headers),
    )


def guess_weights(
    size_bytes: int | None, config: Json, dtype: DtypeName | None, name: str
) -> Weights:
    """Return an estimate of the weights of a repository, made from their size.

    Args:
        size_bytes: Size of the safetensors files.
        config: Config of the model.
        dtype: Dtype of the weights, from the config.
        name: Name of the model in errors.

    Raises:
        ModelError: If the repository has no safetensors weights, so *size_bytes* is 0 or None.
    """
    if not size_bytes:
        raise no_safetensors(name)
    plain = 4 if dtype == "float32" else 2
    # Quantized weights are stored as numbers of one byte.
    number_bytes = 1 if section(config, "quantization_config") else plain
    return Weights(parameters=size_bytes // number_bytes, size_bytes=size_bytes, dtype=dtype)


def weight_paths(folder: Path, name: str) -> list[Path]:
    """Return the paths of the files with weights in *folder*.

    Raises:
        ModelError: If files are missing.
    """
    missing = cache.missing_weights(folder)
    if missing == [cache.SINGLE]:
        raise _no_weights(folder, name)
    if missing == [cache.INDEX]:
        raise ModelError(
            f"{cache.INDEX} of `{name}` is broken", hint="copy or download the file again"
        )
    if missing:
        listed = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise ModelError(
            f"weights of `{name}` are missing: {listed}", hint="copy or download them again"
        )
    return [folder / part for part in cache.weight_files(folder) or ()]


def read_header(path: Path, name: str) -> Json:
    """Return the header of the safetensors file *path*, and check it against the file's size.

    Raises:
        ModelError: If the file is not in the safetensors format, or is cut short.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        content = file.read(length) if 0 < length <= _LARGEST_HEADER else b""
    try:
        header = parse_json(content)
        ends = [_end_of(entry) for entry in _entries(header)]
    except ValueError as error:
        raise ModelError(
            f"{path.name} of `{name}` is not a safetensors file", hint="copy or download it again"
        ) from error
    expected = 8 + length + max(ends, default=0)
    if size < expected:
        raise ModelError(
            f"{path.name} of `{name}` is cut short: {size} of {expected} bytes",
            hint="copy or download it again",
        )
    return header if isinstance(header, dict) else {}


def tensor_names(folder: Path, name: str) -> frozenset[str]:
    """Return the names of all weights in *folder*, from the headers of their files.

    Raises:
        ModelError: See `read_weights`.
    """
    headers = [read_header(path, name) for path in weight_paths(folder, name)]
    return frozenset(key for header in headers for key in header) - {"__metadata__"}


def adapter_error(name: str) -> ModelError:
    """Return the error for a folder that holds an adapter and a model."""
    return ModelError(
        f"`{name}` holds an adapter beside a model",
        hint="if the adapter is merged into the model, remove adapter_config.json; otherwise move "
        "the files of the adapter to a folder of their own, for `--adapter`",
    )


def mlx_error(name: str) -> ModelError:
    """Return the error for weights that were converted for MLX."""
    return ModelError(
        f"`{name}` is converted for MLX, the library for Apple's processors, which this tool does "
        "not use",
        hint="take the original checkpoint, with `--quantization 4bit` if memory is short; "
        "`idefics models` lists models",
    )


def _no_weights(folder: Path, name: str) -> ModelError:
    if (folder / "adapter_config.json").exists():
        return adapter_error(name)
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        return no_safetensors(name)
    return ModelError(
        f"`{name}` has no weights",
        hint=f"the folder needs {cache.SINGLE}, or its parts with {cache.INDEX}",
    )


def _check_names(names: Iterable[str], name: str) -> None:
    """Check that the weights do not have the names that PEFT gives, which transformers cannot find.

    Raises:
        ModelError: If a weight has such a name.
    """
    for key in names:
        if key.startswith(_PEFT_PREFIX) or _LORA.search(key):
            raise ModelError(
                f"the weights of `{name}` have the names of a PEFT model, such as `{key}`",
                hint="load it with PEFT, then `merge_and_unload()` and `save_pretrained(...)`",
            )


def _entries(header: object) -> list[Mapping[str, object]]:
    """Return the entries of all weights in the *header* of a safetensors file.

    Raises:
        ValueError: If the header has another form.
    """
    if not isinstance(header, dict):
        raise ValueError("a header is a JSON object")
    entries = [entry for key, entry in header.items() if key != "__metadata__"]
    if not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("an entry is a JSON object")
    return entries


def _end_of(entry: Mapping[str, object]) -> int:
    """Return where the bytes of a weight end, counted from the end of the header.

    Raises:
        ValueError: If *entry* does not describe a weight.
    """
    shape, offsets = _whole_numbers(entry.get("shape")), _whole_numbers(entry.get("data_offsets"))
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError("a weight has a begin and an end")
    if math.prod(shape) > _NUMBERS_PER_BYTE * (offsets[1] - offsets[0]):
        raise ValueError("a weight has more numbers than bytes")
    return offsets[1]


def _whole_numbers(value: object) -> list[int]:
    if not isinstance(value, list) or not all(type(n) is int and n >= 0 for n in value):
        raise ValueError("a list of whole numbers is expected")
    return value


def _common_dtype(headers: Iterable[Json]) -> DtypeName | None:
    names = {str(entry.get("dtype")) for header in headers for entry in _entries(header)}
    return STORED_DTYPES.get(names.pop()) if len(names) == 1 else None


def _count_numbers(header: Json) -> int:
    return sum(math.prod(_whole_numbers(entry.get("shape"))) for entry in _entries(header))
