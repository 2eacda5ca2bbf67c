"""The README.md of a run: what was trained, on what, and with what result."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from idefics_cli.training.tuning.events import Evaluated
from idefics_cli.training.tuning.job import TuneChoices
from idefics_cli.training.tuning.result import SampleAnswer

_SAMPLES = 8
_LONGEST = 200
_LICENSE = re.compile(r"license: *[\"']?([A-Za-z0-9][A-Za-z0-9.+-]{0,60})[\"']? *")


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a card tells.

    Attributes:
        title: Name of the folder.
        base: Hub id or path of the model.
        data: The data, as the user named it.
        rows: Number of rows that were learned.
        validation: Number of rows that were not.
        weights: Number of trained weights.
        steps: Number of steps.
        weights_step: Number of steps after which the weights were those in the folder.
        version: Version of this program.
        license: License of the base, as its model card names it; None if it is not known.
    """

    title: str
    base: str
    data: str
    rows: int
    validation: int
    weights: int
    steps: int
    weights_step: int
    version: str
    license: str | None = None


def license_in(text: str) -> str | None:
    """Return the license that the front matter of the model card *text* names; None without one."""
    lines = iter(text.splitlines())
    if next(lines, "").strip() != "---":
        return None
    for line in lines:
        if line.strip() == "---":
            return None
        if found := _LICENSE.fullmatch(line):
            return found[1]
    return None


def card(
    facts: CardFacts,
    choices: TuneChoices,
    evaluations: Sequence[Evaluated],
    samples: Sequence[SampleAnswer],
) -> str:
    """Return the text of README.md."""
    return "\n".join(
        [
            "---",
            f"base_model: {_quoted(facts.base)}",
            *([] if facts.license is None else [f"license: {facts.license}"]),
            *([] if choices.full else ["library_name: peft"]),
            "tags: [idefics, image-to-text]",
            "---",
            "",
            f"# {_plain(facts.title)}",
            "",
            _summary(facts, choices),
            "",
            *_results(evaluations, facts.weights_step),
            *_settings(choices, facts),
            *_table_of(samples),
            f"Made by idefics {facts.version}. The license of `{_plain(facts.base)}`"
            f"{f', {facts.license},' if facts.license else ''} applies to it, too.",
            "",
        ]
    )


def _summary(facts: CardFacts, choices: TuneChoices) -> str:
    parts = " and ".join(choices.parts)
    if choices.full:
        what = f"The {parts} weights of `{_plain(facts.base)}`"
        use = f"`idefics caption photos/ -m {_plain(facts.title)}` uses them."
    else:
        what = f"A LoRA adapter for the {parts} model of `{_plain(facts.base)}`"
        use = f"`idefics caption photos/ --adapter {_plain(facts.title)}` uses it."
    return (
        f"{what}, trained on {facts.rows} rows of `{_plain(facts.data)}`"
        f" ({facts.weights:,} weights, {facts.steps} steps). {use}"
    )


def _results(evaluations: Sequence[Evaluated], weights_step: int) -> list[str]:
    if not evaluations or not evaluations[0].asked:
        return []
    lines = ["| steps | validation loss | exact answers |", "|---|---|---|"]
    for each in evaluations:
        mark = " (these weights)" if each.step == weights_step else ""
        lines.append(f"| {each.step}{mark} | {each.loss:.3f} | {each.exact} of {each.asked} |")
    return [*lines, ""]


def _settings(choices: TuneChoices, facts: CardFacts) -> list[str]:
    told = {
        "learning rate": choices.learning_rate,
        "rows a step": choices.batch_size,
        "epochs": choices.epochs,
        "seed": choices.seed,
        "rows for validation": facts.validation,
    }
    if not choices.full:
        told |= {
            "rank": choices.rank,
            "alpha": choices.alpha,
            "dropout": choices.dropout,
            "DoRA": choices.dora,
        }
    return [*(f"* {name}: {value}" for name, value in told.items()), ""]


def _table_of(samples: Sequence[SampleAnswer]) -> list[str]:
    if not samples:
        return []
    lines = ["| wanted | before | after |", "|---|---|---|"]
    for each in samples[:_SAMPLES]:
        cells = (_cell(text) for text in (each.wanted, each.before, each.after))
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _cell(text: str) -> str:
    """Return *text* on one line, without what Markdown would read as its own."""
    line = _plain(text)
    line = line if len(line) <= _LONGEST else line[:_LONGEST] + "…"
    for sign in "\\|<>`*_[]":
        line = line.replace(sign, f"\\{sign}")
    return line


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("`", "'")


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
