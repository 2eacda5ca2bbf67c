"""The text of a plan: what will run, why, and how much memory it needs."""

from __future__ import annotations

from collections.abc import Sequence

from idefics_cli.core.text import one_line
from idefics_cli.core.types import DECODING_BYTES
from idefics_cli.core.units import format_parameters, format_size
from idefics_cli.models.planning.picture_costs import picture_costs
from idefics_cli.models.planning.plan import Plan


def render_plan(plan: Plan) -> str:
    """Return *plan* as lines of text, without a newline at the end.

    The text is plain, so that it is the same on a terminal, in a pipe and in a bug report.
    """
    facts = plan.facts
    kind = "chats" if facts.chats else "base model, completes only"
    title = f"{facts.name}: {format_parameters(facts.parameters)} parameters, {kind}"
    choices = [(r.subject, r.choice, r.why) for r in plan.reasons]
    memory = [
        (
            need.device,
            f"{format_size(need.total)} of {format_size(need.usable)}",
            f"weights {format_size(need.weights)}, KV cache {format_size(need.kv_cache)}, "
            f"working {format_size(need.working)}; {format_size(need.free)} are free",
        )
        for need in plan.needs
    ]
    lines = [
        one_line(title),
        *align_columns(choices),
        "memory for one picture and its answer",
        *align_columns(memory),
        f"  reading pictures from their files takes up to {format_size(DECODING_BYTES)} more, "
        "however many there are; a larger picture is read alone",
    ]
    lines += [one_line(f"! {warning}") for warning in plan.warnings]
    return "\n".join(lines)


def render_picture_costs(plan: Plan) -> str:
    """Return a table of the tokens that a picture costs, by the length of its longer side."""
    rows = [("longest edge", "whole", "in tiles")]
    for cost in picture_costs(plan.facts, plan.spec):
        edge = "fixed" if cost.longest_edge is None else f"{cost.longest_edge} pixels"
        split = "" if cost.split_tokens is None else f"{cost.split_tokens} ({cost.tiles})"
        rows.append((edge + (" *" if cost.is_planned else ""), f"{cost.whole_tokens}", split))
    return "\n".join(["tokens of a picture of 4:3, about (* in this plan)", *align_columns(rows)])


def align_columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return *rows* as indented lines with aligned columns, without spaces at their ends."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append(one_line("  " + "  ".join(cells)).rstrip())
    return lines
