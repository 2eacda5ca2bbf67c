"""Facts about one model, found by its alias, its Hub id or its folder."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from idefics_cli.core.adapters import LoraAdapter
from idefics_cli.core.errors import ModelError
from idefics_cli.core.types import DtypeName, Quantization
from idefics_cli.models.families.geometry import Json
from idefics_cli.models.families.spec import FamilySpec, Shape
from idefics_cli.models.hub import checkpoint
from idefics_cli.models.hub.adapters import find_adapter, is_adapter
from idefics_cli.models.hub.cache import cached_folder, is_offline, missing_files
from idefics_cli.models.hub.download import fetch_small_files, weight_bytes_on_hub
from idefics_cli.models.hub.errors import not_cached
from idefics_cli.models.hub.files import check_files
from idefics_cli.models.hub.names import is_hub_id, local_folder
from idefics_cli.models.hub.registry import DEMO, MODELS, ModelSpec, find_model, unknown_model
from idefics_cli.models.hub.sizes import NUMBER_BYTES, quantized_weights
from idefics_cli.models.hub.weights import Weights, guess_weights, read_weights


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a plan needs to know about one model.

    Attributes:
        name: The model as the user named it.
        repo: Hub id, absolute path of a folder, or "demo".
        revision: Branch, tag or commit of a Hub repository.
        family: Key of `FAMILIES`, which is the `model_type` of the config.
        parameters: Number of weights.
        shape: The numbers from which the memory of the model is computed.
        context_tokens: Largest number of tokens of prompt and reply together.
        chats: Whether the model chats; False for base models, which only complete text.
        splitting: Whether the model splits pictures into tiles by default; None if it cannot.
        folder: Folder with all files of the model; None if files are missing.
        download_bytes: Bytes that must still be downloaded; None if unknown, 0 if nothing is left.
        stored: Quantization of the weights in the files; None if they are not quantized.
        stored_bytes: Size of the files if their weights are quantized, else 0.
        stored_dtype: Dtype of the unquantized weights in such files, which cannot be changed.
        files_dtype: Dtype of the weights in the files; None if it is unknown, or not the same for
            all.
        adapter: The adapter that changes the weights, if there is one.
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
    files_dtype: DtypeName | None = None
    adapter: LoraAdapter | None = None


def find_facts(name: str, *, revision: str | None = None, offline: bool = False) -> ModelFacts:
    """Return the facts about the model *name*.

    Args:
        name: Alias, Hub id or path of a folder. Models of the registry need no network. For other
            models on the Hub, the small files are downloaded if they are not cached. The name of
            an adapter means its base model with the adapter.
        revision: Branch, tag or commit of a Hub repository.
        offline: Whether the network must not be used.

    Raises:
        ModelError: If the model is unknown, broken, of a family that this tool does not run, or
            neither cached nor reachable.
    """
    spec = find_model(name)
    if spec is not None:
        return _facts_of_spec(spec, name, revision)
    folder = local_folder(name)
    if folder is not None and is_adapter(folder):
        return _facts_with_adapter(name, offline=offline)
    if folder is not None:
        return _facts_of_folder(folder, name)
    _check_name(name)
    return _facts_of_hub(name, revision, offline=offline)


def check_name(name: str) -> None:
    """Check that *name* can be that of a model: an alias, a folder, or a Hub id.

    Raises:
        ModelError: If it is none of them. The message says what *name* seems to be.
    """
    if find_model(name) is None and local_folder(name) is None:
        _check_name(name)


def find_folder(name: str, revision: str | None = None) -> Path | None:
    """Return the folder of the model *name* if its files are complete here, without the network.

    Raises:
        ModelError: If *name* is no alias, Hub id or folder.
    """
    spec, folder = find_model(name), local_folder(name)
    if spec is not None:
        return demo_folder() if spec.name == DEMO else cached_folder(spec.repo, revision)
    if folder is not None:
        return folder
    _check_name(name)
    return cached_folder(name, revision)


def demo_folder() -> Path:
    """Return the folder of the built-in model.

    Raises:
        ModelError: If this installation lacks the built-in model.
    """
    folder = Path(__file__).parents[2] / "demo" / "weights"
    if missing_files(folder):
        raise ModelError(
            "the built-in model is missing from this installation",
            hint="pip install --force-reinstall idefics-cli",
        )
    return folder


def registry_facts(*, root: Path | None = None) -> list[ModelFacts]:
    """Return the facts about every model of the registry, in the order of the registry.

    Args:
        root: Folder of the Hugging Face cache; None is the user's cache.
    """
    return [_facts_of_spec(spec, spec.name, None, root) for spec in MODELS.values()]


def _facts_of_spec(
    spec: ModelSpec, name: str, revision: str | None, root: Path | None = None
) -> ModelFacts:
    is_built_in = spec.name == DEMO
    folder = demo_folder() if is_built_in else cached_folder(spec.repo, revision, root=root)
    download_bytes: int | None = 0
    if folder is None:
        download_bytes = (
            None if spec.stored is None else spec.parameters * NUMBER_BYTES[spec.stored]
        )
    return ModelFacts(
        # An alias is spelled as in the registry, a Hub id as the user wrote it.
        name=name if "/" in name else spec.name,
        repo=spec.repo,
        revision=None if is_built_in else revision,
        family=spec.family,
        parameters=spec.parameters,
        shape=spec.shape,
        context_tokens=spec.context_tokens,
        chats=spec.chats,
        splitting=spec.splitting,
        folder=folder,
        download_bytes=download_bytes,
        files_dtype=spec.stored,
    )


def _facts_of_folder(folder: Path, name: str) -> ModelFacts:
    check_files(folder, name)
    config = checkpoint.read_config(folder, name)
    family = checkpoint.family_of(config, name)
    weights = read_weights(folder, name)
    missing = missing_files(folder)
    if not missing and not checkpoint.image_settings(folder, name):
        # A processor_config.json alone is enough only if it has settings of pictures. Those of
        # transformers 4 have only settings of texts.
        missing = ("preprocessor_config.json",)
    if missing:
        raise ModelError(
            f"`{name}` has no {' and no '.join(missing)}",
            hint="copy the files of the tokenizer and the processor from the folder of the base "
            "model; in Python, `processor.save_pretrained(...)` writes them",
        )
    facts = _facts_of_files(folder, name, config, family, weights)
    return replace(facts, repo=str(folder), folder=folder)


def _facts_with_adapter(name: str, *, offline: bool) -> ModelFacts:
    """Return the facts about the base model of the adapter *name*, with the adapter."""
    adapter = find_adapter(name, offline=offline)
    base = local_folder(adapter.base)
    if not adapter.base or (base is not None and is_adapter(base)):
        raise ModelError(
            f"the adapter `{name}` does not say for which model it was made",
            hint=f"name the model, too: `-m MODEL --adapter {name}`",
        )
    return replace(find_facts(adapter.base, offline=offline), name=name, adapter=adapter)


def _facts_of_hub(repo: str, revision: str | None, *, offline: bool) -> ModelFacts:
    complete = cached_folder(repo, revision)
    if complete is None and (offline or is_offline()):
        raise not_cached(repo, revision)
    folder = complete or fetch_small_files(repo, revision)
    if is_adapter(folder):
        return _facts_with_adapter(repo, offline=offline)
    check_files(folder, repo)
    config = checkpoint.read_config(folder, repo)
    family = checkpoint.family_of(config, repo)
    download_bytes: int | None = 0
    if complete is not None:
        weights = read_weights(complete, repo)
    else:
        download_bytes = weight_bytes_on_hub(repo, revision)
        weights = guess_weights(download_bytes, config, checkpoint.stored_dtype(config), repo)
    facts = _facts_of_files(folder, repo, config, family, weights)
    return replace(facts, revision=revision, folder=complete, download_bytes=download_bytes)


def _facts_of_files(
    folder: Path, name: str, config: Json, family: FamilySpec, weights: Weights
) -> ModelFacts:
    """Return the facts that the small files in *folder* state, with *name* as the repository."""
    stored = checkpoint.stored_quantization(config, name)
    shape = checkpoint.shape_of(config, folder, name)
    parameters = weights.parameters
    if stored == "4bit":
        # The files hold two 4-bit weights as one number, which was counted once. The number of
        # scales is negligible.
        parameters += quantized_weights(shape) // 2
    return ModelFacts(
        name=name,
        repo=name,
        family=family.name,
        parameters=parameters,
        shape=shape,
        context_tokens=checkpoint.context_tokens(config, family),
        chats=checkpoint.chats(folder, family, name),
        splitting=checkpoint.splitting(folder, family, name),
        stored=stored,
        stored_bytes=weights.size_bytes if stored else 0,
        stored_dtype=checkpoint.stored_dtype(config) if stored else None,
        files_dtype=weights.dtype,
    )


def _check_name(name: str) -> None:
    """Check that *name*, for which there is no folder, has the form of a Hub id.

    Raises:
        ModelError: If it has another form. The message says what *name* seems to be.
    """
    if name.lower().endswith(".gguf"):
        raise checkpoint.gguf_error(name)
    if os.path.isfile(os.path.expanduser(name)):
        raise ModelError(f"`{name}` is a file", hint="give the folder of the model")
    if address := re.match(r"https?://(?:huggingface\.co|hf\.co)/([^/]+/[^/?#]+)", name):
        raise ModelError(f"`{name}` is an address", hint=f"use `-m {address[1]}`")
    if name.startswith((".", "~", "/")) or name.count("/") > 1 or "\\" in name:
        raise ModelError(
            f"there is no folder `{name}`",
            hint="give a folder, a Hub id `owner/name`, or a name from `idefics models`",
        )
    if not is_hub_id(name):
        raise unknown_model(name)
