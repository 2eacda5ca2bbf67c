"""A plan for people: what will run, why, and what memory it takes."""

from __future__ import annotations

from collections.abc import Sequence

from idefics_cli.core.text import one_line
from idefics_cli.core.units import gib
from idefics_cli.models.planning.plan import Plan


def plan_record(plan: Plan) -> dict[str, object]:
    """Return *plan* for JSON."""
    return plan.to_dict()


def render_plan(plan: Plan) -> str:
    """Return *plan* as lines of text, without a last newline.

    Plain on purpose: the same on a terminal, in a pipe and in a bug report.
    """
    facts = plan.facts
    kind = "chats" if facts.chats else "base model, completes only"
    title = f"{facts.name}: {parameters(facts.parameters)} parameters, {kind}"
    choices = [(r.subject, r.choice, r.why) for r in plan.reasons]
    memory = [
        (
            need.device,
            f"{gib(need.total)} of {gib(need.usable)}",
            f"weights {gib(need.weights)}, KV cache {gib(need.kv_cache)}, "
            f"working {gib(need.working)}; {gib(need.free)} are free",
        )
        for need in plan.needs
    ]
    lines = [
        one_line(title),
        *table(choices),
        "memory for one picture and its answer",
        *table(memory),
    ]
    lines += [one_line(f"! {warning}") for warning in plan.warnings]
    return "\n".join(lines)


def table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return *rows* as indented lines with aligned columns; the last column is not padded."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append(one_line("  " + "  ".join(cells)).rstrip())
    return lines


def parameters(count: int) -> str:
    """Return a number of weights for people, as "8.4 B"."""
    return f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.0f} M"
