"""The checked arguments and options of `idefics bench`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from idefics_cli.bench.serving.packages import SERVER_PACKAGES
from idefics_cli.core.errors import InputError, UsageError
from idefics_cli.core.files import check_folder, check_place
from idefics_cli.core.types import Quantization

WITHOUT_MODEL = frozenset({"scale"})
"""The scenarios that measure stand-ins for models."""

_CAPTION = "caption"
# Packages of extras, by the scenario that needs them.
_NEEDED = {"tune": ("peft",), "serve": SERVER_PACKAGES}


@dataclass(frozen=True, slots=True)
class RandomWeights:
    """Which random weights to make.

    Attributes:
        shape: Name of the model whose shape the weights have.
        layers: Layers of the text model; None keeps all.
        vision_layers: Layers of the vision model; None keeps as many as *layers*.
        folder: Folder to keep the weights in; None removes the weights at the end.
    """

    shape: str
    layers: int | None
    vision_layers: int | None
    folder: str | None


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user asks for, after it was checked; None stands for "not given".

    Attributes:
        names: The scenarios, at least one.
        folder: Folder of the pictures to caption.
        weights: Random weights to make instead of loading a model.
        batch_sizes: Numbers of requests at a time.
        contexts: Numbers of prompt tokens.
        new_tokens: Length of an answer.
        rounds: Largest number of rounds for a figure.
        seconds: Time after which no further round of a figure begins.
        quick: Whether to measure fewer figures.
        plain_quantization: Quantization of plain transformers; None means the same as ours.
    """

    names: tuple[str, ...]
    folder: Path | None
    weights: RandomWeights | None
    batch_sizes: tuple[int, ...] | None
    contexts: tuple[int, ...] | None
    new_tokens: int | None
    rounds: int | None
    seconds: float | None
    quick: bool
    plain_quantization: Quantization | None


def parse(
    scenarios: Sequence[str],
    *,
    weights: RandomWeights | None,
    batch_sizes: str | None,
    contexts: str | None,
    new_tokens: str | None,
    rounds: str | None,
    seconds: str | None,
    plain_quantization: str | None,
    quick: bool,
) -> Asked:
    """Check what the user has typed, and return it.

    Raises:
        UsageError: If a scenario, a number or a folder makes no sense.
    """
    names, folder = _scenarios(scenarios)
    return Asked(
        names=names,
        folder=folder,
        weights=weights,
        batch_sizes=_numbers("--batch-sizes", batch_sizes),
        contexts=_numbers("--contexts", contexts),
        new_tokens=_number("--new-tokens", new_tokens, least=2),
        rounds=_number("--rounds", rounds),
        seconds=_seconds(seconds),
        quick=quick,
        plain_quantization=_quantization(plain_quantization),
    )


def parse_weights(
    shape: str | None,
    layers: str | None,
    vision_layers: str | None,
    folder: str | None,
    *,
    has_model: bool,
) -> RandomWeights | None:
    """Check the options for random weights, and return them; None if there is no `--shape`.

    Args:
        shape: Name of a model.
        layers: Layers of the text model.
        vision_layers: Layers of the vision model.
        folder: Folder to keep the weights in.
        has_model: Whether the user also names a model.

    Raises:
        UsageError: If the shape is unknown, or an option does not go with the others.
    """
    from idefics_cli.bench.shapes import SHAPES

    if shape is None:
        for flag, given in (
            ("--layers", layers),
            ("--vision-layers", vision_layers),
            ("--keep-weights", folder),
        ):
            if given is not None:
                raise UsageError(f"{flag} needs `--shape`", hint="try `--shape idefics2-8b`")
        return None
    if has_model:
        raise UsageError("--shape and --model exclude each other", hint="leave one of them out")
    if shape not in SHAPES:
        raise UsageError(f"no shape `{shape}` is known", hint=_guess(shape, SHAPES))
    if folder is not None:
        _check_weights_folder(folder)
    return RandomWeights(
        shape, _number("--layers", layers), _number("--vision-layers", vision_layers), folder
    )


def _check_weights_folder(name: str) -> None:
    if not name:
        raise UsageError("the name of the folder for the weights is empty")
    check_folder(Path(name))


def check_outputs(*paths: str | None) -> None:
    """Check that the files at *paths* can be written, before the benchmark takes minutes.

    Raises:
        UsageError: If a file cannot be written.
    """
    for path in paths:
        if path is None:
            continue
        if not path:
            raise UsageError("the name of the output file is empty")
        check_place(Path(path))


def captioned_pictures(folder: Path | None) -> tuple[Path, ...]:
    """Return the pictures in *folder*, in the order in which `idefics caption` takes them.

    Raises:
        InputError: If *folder* is not a folder, or holds no pictures.
    """
    if folder is None:
        return ()
    from idefics_cli.caption.inputs.discover import discover

    if not folder.is_dir():
        raise InputError(f"`{folder}` is not a folder", hint="name a folder of pictures")
    listing = discover([str(folder)], recursive=False)
    if not listing.pictures:
        raise InputError(f"`{folder}` holds no pictures")
    return tuple(Path(picture.attachment.source) for picture in listing.pictures)


def _scenarios(typed: Sequence[str]) -> tuple[tuple[str, ...], Path | None]:
    from idefics_cli.bench.run import SCENARIOS

    names: list[str] = []
    folder = None
    for word in typed:
        if word in SCENARIOS:
            names.append(word)
        elif names and names[-1] == _CAPTION and folder is None:
            folder = Path(word)
        else:
            raise UsageError(f"there is no scenario `{word}`", hint=_guess(word, SCENARIOS))
    return tuple(names) or tuple(_usual(SCENARIOS)), folder


def _usual(names: Iterable[str]) -> Iterable[str]:
    """Yield the scenarios of a run that names none.

    They are all that compare with plain transformers, and whose extra is not missing.
    """
    return (
        name
        for name in names
        if name not in WITHOUT_MODEL
        and all(find_spec(package) is not None for package in _NEEDED.get(name, ()))
    )


def _guess(word: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(word, names, n=1)
    return f"did you mean `{near[0]}`?" if near else f"choose of {', '.join(names)}"


def _quantization(name: str | None) -> Quantization | None:
    for known in get_args(Quantization):
        if name == known:
            return known  # type: ignore[no-any-return]  # a member of the Literal
    if name is not None:
        raise UsageError(
            f"unknown quantization `{name}`", hint=f"choose of {', '.join(get_args(Quantization))}"
        )
    return None


def _numbers(flag: str, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    numbers = [_number(flag, part.strip()) for part in text.split(",")]
    return tuple(dict.fromkeys(number for number in numbers if number is not None))


def _number(flag: str, text: str | None, *, least: int = 1) -> int | None:
    if text is None:
        return None
    try:
        number = int(text)
    except ValueError:
        raise UsageError(f"{flag} must be a whole number, not `{text[:60]}`") from None
    if not least <= number <= 1_000_000:
        raise UsageError(f"{flag} must be from {least} to 1,000,000, not {number}")
    return number


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        raise UsageError(f"--seconds must be a number, not `{text[:60]}`") from None
    if not 0 < number < 1e6:
        raise UsageError(f"--seconds must be more than 0 and below 1,000,000, not {text[:60]}")
    return number
