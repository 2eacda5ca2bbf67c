"""The checked arguments and options of `idefics tune`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar, cast, get_args

from idefics_cli.cli.commands.tune.options import number
from idefics_cli.core.errors import UsageError
from idefics_cli.core.text import or_list
from idefics_cli.models.families.spec import PartName
from idefics_cli.training.tuning.job import TuneChoices

Word = TypeVar("Word", bound=str)


def chosen_folder(output: str | None) -> Path:
    """Return the folder for the adapter.

    Raises:
        UsageError: If there is none.
    """
    if not output or output == "-":
        raise UsageError("a folder for the adapter is missing", hint="`-o DIR`")
    return Path(output)


def chosen_parts(text: str | None) -> tuple[PartName, ...]:
    """Return the parts that *text* names, each once, in the order text, connector, vision.

    Raises:
        UsageError: If a name is unknown.
    """
    named = [word.strip() for word in (text or "text").split(",") if word.strip()]
    known = get_args(PartName)
    for word in named:
        if word not in known:
            raise UsageError(f"--train must be {or_list(known)}, not `{word}`")
    if not named:
        raise UsageError("--train names no part", hint="`--train text,connector`")
    return cast("tuple[PartName, ...]", tuple(part for part in known if part in named))


def chosen_word(flag: str, text: str | None, words: tuple[Word, ...]) -> Word:
    """Return *text* if it is among *words*; the first of them if it is None.

    Raises:
        UsageError: If it is not.
    """
    if text is None:
        return words[0]
    found = next((word for word in words if word == text), None)
    if found is None:
        raise UsageError(f"{flag} must be {or_list(words)}, not `{text}`")
    return found


def chosen_share(text: str | None) -> float | Path:
    """Return the share of the pictures for validation, or the file with other data.

    Raises:
        UsageError: If it is neither.
    """
    if text is None:
        return 0.05
    try:
        share = float(text)
    except ValueError:
        if Path(text).exists():
            return Path(text)
        raise UsageError(
            f"--validation must be a share, such as 0.1, or data, not `{text}`"
        ) from None
    if not 0 < share < 1:
        raise UsageError(f"--validation must be more than 0 and less than 1, not `{text}`")
    return share


def chosen_training(
    *,
    train: str | None,
    full: bool,
    rank: str | None,
    alpha: str | None,
    dropout: str | None,
    dora: bool,
    learning_rate: str | None,
    epochs: str | None,
    batch_size: int | None,
    replay: str | None,
    seed: int | None,
    checkpointing: bool | None,
    keep_features: bool,
) -> TuneChoices:
    """Return how the model is trained.

    Raises:
        UsageError: If an option is wrong, or options contradict each other.
    """
    if full:
        _refuse_adapter_options({"rank": rank, "alpha": alpha, "dropout": dropout}, dora=dora)
    usual = TuneChoices()
    drop = _dropout(dropout)
    return TuneChoices(
        parts=chosen_parts(train),
        full=full,
        rank=cast("int", number("rank", rank) or usual.rank),
        alpha=cast("float | None", number("alpha", alpha)),
        dropout=usual.dropout if drop is None else drop,
        dora=dora,
        learning_rate=cast("float | None", number("learning_rate", learning_rate)),
        epochs=cast("float | None", number("epochs", epochs)),
        batch_size=batch_size,
        replay=cast("float | None", number("replay", replay)),
        seed=seed or 0,
        checkpointing=checkpointing,
        keeps_features=keep_features,
    )


def _refuse_adapter_options(options: Mapping[str, str | None], *, dora: bool) -> None:
    named = [name for name, text in options.items() if text is not None] + ["dora"] * dora
    if named:
        raise UsageError(f"--{named[0]} is for adapters, and --full trains the weights themselves")


def _dropout(text: str | None) -> float | None:
    share = number("dropout", text)
    if isinstance(share, float) and share >= 1:
        raise UsageError(f"--dropout must be less than 1, not `{text}`")
    return cast("float | None", share)
