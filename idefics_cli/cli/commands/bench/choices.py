"""What a call of `idefics bench` asks for, checked."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from idefics_cli.core.errors import UsageError
from idefics_cli.core.types import Quantization

_CAPTION = "caption"


@dataclass(frozen=True, slots=True)
class Asked:
    """A checked call; None is what was left open.

    Attributes:
        names: Scenarios, at least one.
        folder: Of the pictures to caption.
        batch_sizes: Requests at a time.
        contexts: Prompt tokens.
        new_tokens: Of an answer.
        rounds: At most.
        seconds: After which no round of a figure begins.
        quick: Fewer figures.
        count: Pictures to draw.
        shape: Whose random weights to make.
        layers: Of its text model.
        vision_layers: Of its vision model.
        keep_weights: Folder for them.
        plain_quantization: Of plain transformers; None is that of ours.
    """

    names: tuple[str, ...]
    folder: Path | None
    batch_sizes: tuple[int, ...] | None
    contexts: tuple[int, ...] | None
    new_tokens: int | None
    rounds: int | None
    seconds: float | None
    quick: bool
    count: int | None
    shape: str | None
    layers: int | None
    vision_layers: int | None
    keep_weights: str | None
    plain_quantization: Quantization | None


def parse(
    scenarios: Sequence[str],
    *,
    batch_sizes: str | None,
    contexts: str | None,
    new_tokens: str | None,
    rounds: str | None,
    seconds: str | None,
    shape: str | None,
    layers: str | None,
    vision_layers: str | None,
    keep_weights: str | None,
    plain_quantization: str | None,
    quick: bool,
    outputs: Sequence[str | None],
    count: int | None,
    model_given: bool,
) -> Asked:
    """Check what was typed.

    Raises:
        UsageError: If something of it cannot mean anything.
    """
    names, folder = _scenarios(scenarios)
    _check_shape(shape, layers, vision_layers, keep_weights, model_given=model_given)
    for path in outputs:
        _check_output(path)
    return Asked(
        names=names,
        folder=folder,
        batch_sizes=_numbers("--batch-sizes", batch_sizes),
        contexts=_numbers("--contexts", contexts),
        new_tokens=_number("--new-tokens", new_tokens, least=2),
        rounds=_number("--rounds", rounds),
        seconds=_seconds(seconds),
        quick=quick,
        count=count,
        shape=shape,
        layers=_number("--layers", layers),
        vision_layers=_number("--vision-layers", vision_layers),
        keep_weights=keep_weights,
        plain_quantization=_quantization(plain_quantization),
    )


def captioned_pictures(folder: Path | None) -> tuple[Path, ...]:
    """Return the pictures in *folder*, in the order in which `idefics caption` takes them.

    Raises:
        UsageError: If it is no folder, or holds none.
    """
    if folder is None:
        return ()
    from idefics_cli.caption.inputs.discover import discover

    if not folder.is_dir():
        raise UsageError(f"`{folder}` is not a folder", hint="name a folder of pictures")
    listing = discover([str(folder)], recursive=False)
    if not listing.pictures:
        raise UsageError(f"`{folder}` holds no pictures")
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
            near = difflib.get_close_matches(word, SCENARIOS, n=1)
            raise UsageError(
                f"there is no scenario `{word}`",
                hint=f"did you mean `{near[0]}`?" if near else f"choose of {', '.join(SCENARIOS)}",
            )
    return tuple(names) or tuple(SCENARIOS), folder


def _check_shape(
    shape: str | None,
    layers: str | None,
    vision_layers: str | None,
    keep_weights: str | None,
    *,
    model_given: bool,
) -> None:
    from idefics_cli.bench.shapes import SHAPES

    if shape is None:
        for flag, given in (
            ("--layers", layers),
            ("--vision-layers", vision_layers),
            ("--keep-weights", keep_weights),
        ):
            if given is not None:
                raise UsageError(f"{flag} needs `--shape`", hint="as `--shape idefics2-8b`")
        return
    if model_given:
        raise UsageError("--shape and --model exclude each other", hint="leave one of them out")
    if keep_weights == "":
        raise UsageError("the name of the folder for the weights is empty")
    if shape not in SHAPES:
        near = difflib.get_close_matches(shape, SHAPES, n=1)
        guess = f"did you mean `{near[0]}`?" if near else f"choose of {', '.join(SHAPES)}"
        raise UsageError(f"no shape `{shape}` is known", hint=guess)


def _quantization(name: str | None) -> Quantization | None:
    for known in get_args(Quantization):
        if name == known:
            return known  # type: ignore[no-any-return] # a member of the Literal
    if name is not None:
        raise UsageError(
            f"unknown quantization `{name}`", hint=f"choose of {', '.join(get_args(Quantization))}"
        )
    return None


def _check_output(path: str | None) -> None:
    """Check that *path* can be written, before minutes are spent."""
    if path is None:
        return
    if not path:
        raise UsageError("the name of the output file is empty")
    if Path(path).is_dir():
        raise UsageError(f"cannot write `{path}`: it is a folder", hint="name a file in it")
    if not Path(path).absolute().parent.is_dir():
        raise UsageError(f"cannot write `{path}`: no folder `{Path(path).parent}`")


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
