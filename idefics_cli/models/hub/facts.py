"""What a plan needs to know of one model: an alias, a Hub id or a local folder, looked up."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from idefics_cli.core.errors import ModelError
from idefics_cli.core.types import DtypeName, Quantization
from idefics_cli.models.families.spec import Shape
from idefics_cli.models.hub import cache, checkpoint
from idefics_cli.models.hub.registry import DEMO, MODELS, ModelSpec, find_model, unknown_model
from idefics_cli.models.hub.sizes import BYTES, quantized_weights

_HUB_ID = re.compile(r"[\w][\w.-]*/[\w.-]+")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a plan needs to know of one model.

    Attributes:
        name: What the user calls it.
        repo: Hub id, absolute path of a folder, or "demo".
        revision: Branch, tag or commit of a Hub repository.
        family: Key of `FAMILIES`, which is the `model_type` of its config.
        parameters: Number of weights.
        shape: What its memory follows from.
        context_tokens: Longest prompt and reply together.
        chats: False for base models, which only complete.
        splitting: Whether pictures are cut into tiles by default; None if they cannot be.
        folder: Where its files are; None while they are not all there.
        download_bytes: What is still to be fetched; None if unknown, 0 if nothing.
        stored: How its weights are quantized in the files; None if they are not.
        stored_bytes: Of the files, when they are quantized.
        stored_dtype: Of what is not quantized in them; it cannot be changed then.
    """

    name: str
    repo: str
    family: str
    parameters: int
    shape: Shape
    context_tokens: int
    chats: bool
    revision: str | None = None
    splitting: bool | None = None
    folder: Path | None = None
    download_bytes: int | None = 0
    stored: Quantization | None = None
    stored_bytes: int = 0
    stored_dtype: DtypeName | None = None


def find_facts(name: str, *, revision: str | None = None, offline: bool = False) -> ModelFacts:
    """Look the model *name* up.

    Args:
        name: Alias, Hub id or path of a folder. An alias or its Hub id needs no network; of
            other Hub ids the small files are fetched unless they are cached.
        revision: Branch, tag or commit of a Hub repository.
        offline: Do not reach for the network.

    Raises:
        ModelError: If it is unknown, broken, of a family that this tool does not run, or
            neither cached nor reachable.
    """
    spec = find_model(name)
    if spec is not None:
        return _facts_of_spec(spec, name, revision)
    folder = _local_folder(name)
    if folder is not None:
        return _facts_of_folder(folder, name)
    _check_name(name)
    return _facts_of_hub(name, revision, offline=offline)


def find_folder(name: str, revision: str | None = None) -> Path | None:
    """Return the folder of the model *name* if all of it is on this machine; no network.

    Raises:
        ModelError: If *name* is no alias, Hub id or folder.
    """
    spec, folder = find_model(name), _local_folder(name)
    if spec is not None:
        return demo_folder() if spec.name == DEMO else cache.cached_folder(spec.repo, revision)
    if folder is not None:
        return folder
    _check_name(name)
    return cache.cached_folder(name, revision)


def demo_folder() -> Path:
    """Return the folder of the built-in model.

    Raises:
        ModelError: If this installation lacks it.
    """
    folder = Path(__file__).parents[2] / "demo" / "weights"
    if cache.missing_files(folder):
        raise ModelError(
            "the built-in model is missing from this installation",
            hint="pip install --force-reinstall idefics-cli",
        )
    return folder


def registry_facts(*, root: Path | None = None) -> list[ModelFacts]:
    """Return the facts of every model known by name, in the order of the registry.

    Args:
        root: The Hugging Face cache; None is the user's.
    """
    return [_facts_of_spec(spec, spec.name, None, root) for spec in MODELS.values()]


def _facts_of_spec(
    spec: ModelSpec, name: str, revision: str | None, root: Path | None = None
) -> ModelFacts:
    built_in = spec.name == DEMO
    folder = demo_folder() if built_in else cache.cached_folder(spec.repo, revision, root=root)
    download: int | None = 0
    if folder is None:
        download = None if spec.stored is None else spec.parameters * BYTES[spec.stored]
    return ModelFacts(
        # An alias in its own spelling; a Hub id as it was typed.
        name=name if "/" in name else spec.name,
        repo=spec.repo,
        revision=None if built_in else revision,
        family=spec.family,
        parameters=spec.parameters,
        shape=spec.shape,
        context_tokens=spec.context_tokens,
        chats=spec.chats,
        splitting=spec.splitting,
        folder=folder,
        download_bytes=download,
    )


def _facts_of_folder(folder: Path, name: str) -> ModelFacts:
    config = checkpoint.read_config(folder, name)
    family = checkpoint.family_of(config, name)
    weights = checkpoint.read_weights(folder, name)
    missing = cache.missing_files(folder)
    if missing:
        raise ModelError(
            f"`{name}` has no {' and no '.join(missing)}",
            hint="copy the processor's files next to the weights: `processor.save_pretrained(...)`",
        )
    stored = checkpoint.stored_quantization(config, name)
    shape = checkpoint.shape_of(config, folder, name)
    return ModelFacts(
        name=name,
        repo=str(folder),
        family=family.name,
        parameters=_parameters(weights.parameters, shape, stored),
        shape=shape,
        context_tokens=checkpoint.context_tokens(config, family),
        chats=checkpoint.chats(folder, family, name),
        splitting=checkpoint.splitting(folder, family, name),
        folder=folder,
        stored=stored,
        stored_bytes=weights.size_bytes if stored else 0,
        stored_dtype=checkpoint.stored_dtype(config) if stored else None,
    )


def _facts_of_hub(repo: str, revision: str | None, *, offline: bool) -> ModelFacts:
    complete = cache.cached_folder(repo, revision)
    if complete is None and (offline or cache.is_offline()):
        raise cache.not_cached(repo, revision)
    folder = complete or cache.fetch_small_files(repo, revision)
    config = checkpoint.read_config(folder, repo)
    family = checkpoint.family_of(config, repo)
    stored = checkpoint.stored_quantization(config, repo)
    shape = checkpoint.shape_of(config, folder, repo)
    download: int | None = 0
    if complete is not None:
        weights = checkpoint.read_weights(complete, repo)
    else:
        download = cache.weight_bytes_on_hub(repo, revision)
        weights = checkpoint.guess_weights(download, config, repo)
    return ModelFacts(
        name=repo,
        repo=repo,
        revision=revision,
        family=family.name,
        parameters=_parameters(weights.parameters, shape, stored),
        shape=shape,
        context_tokens=checkpoint.context_tokens(config, family),
        chats=checkpoint.chats(folder, family, repo),
        splitting=checkpoint.splitting(folder, family, repo),
        folder=complete,
        download_bytes=download,
        stored=stored,
        stored_bytes=weights.size_bytes if stored else 0,
        stored_dtype=checkpoint.stored_dtype(config) if stored else None,
    )


def _parameters(numbers: int, shape: Shape, stored: Quantization | None) -> int:
    # Two 4-bit weights are stored as one number; their scales do not matter here.
    return numbers + quantized_weights(shape) // 2 if stored == "4bit" else numbers


def _local_folder(name: str) -> Path | None:
    # The functions of os.path take any text; Path's raise for some.
    path = os.path.expanduser(name)
    return Path(path).absolute() if os.path.isdir(path) else None


def _check_name(name: str) -> None:
    """Raise what is wrong with *name*, which is no folder, unless it is a Hub id."""
    if name.lower().endswith(".gguf"):
        raise checkpoint.gguf_error(name)
    if os.path.isfile(os.path.expanduser(name)):
        raise ModelError(f"`{name}` is a file", hint="give the folder of the model")
    if address := re.match(r"https?://(?:huggingface\.co|hf\.co)/([^/]+/[^/?#]+)", name):
        raise ModelError(f"`{name}` is an address", hint=f"`-m {address[1]}` is what it names")
    if name.startswith((".", "~", "/")) or name.count("/") > 1 or "\\" in name:
        raise ModelError(
            f"there is no folder `{name}`",
            hint="give a folder, a Hub id `owner/name`, or a name from `idefics models`",
        )
    if not _HUB_ID.fullmatch(name):
        raise unknown_model(name)
