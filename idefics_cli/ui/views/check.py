"""The results of a self-check: progress, a table, and values for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from idefics_cli.core.text import one_line
from idefics_cli.core.units import counted
from idefics_cli.models.planning.verdicts import Verdict
from idefics_cli.selfcheck.results import CheckResult, ProbeRow, WayResult, has_reference, is_sound
from idefics_cli.selfcheck.speeds import SpeedCheck
from idefics_cli.ui.terminal.console import Console, write
from idefics_cli.ui.views.plan import align_columns

_HEAD = ("way", "right", "measured", "result")
_LEAST_COLUMNS = 76
_ERASE = "\r\x1b[2K"
_STYLES = {"right": "", "wrong": "bold red", "refused": "dim"}


class CheckProgress:
    """Shows on stderr which way is checked now, and each way that is wrong.

    Args:
        console: The output.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str, share: float) -> None:
        """Show *text* as the current step until the next one; in a pipe, do nothing."""
        if self._console.draws and not self._console.quiet:
            write(self._console.err, f"{_ERASE}{share:4.0%} {one_line(text)} …")

    def show(self, result: CheckResult) -> None:
        """Show a result: a wrong one always, the others on a terminal that draws nothing."""
        console = self._console
        if result.status == "wrong":
            self.clear()
            console.warn(f"{_name(result)}: {result.reason}")
        elif console.err.isatty() and not console.draws:
            console.tell(f"{_name(result)}: {result.status}")

    def clear(self) -> None:
        """Remove the line that `say` has written."""
        if self._console.draws and not self._console.quiet:
            write(self._console.err, _ERASE)


def show_check(
    console: Console, results: Sequence[CheckResult], note: str, speeds: SpeedCheck | None
) -> None:
    """Write *results*, *speeds*, *note* and the verdict to stdout.

    The results are a table on a terminal, else lines.
    """
    if console.is_terminal and console.draws and console.out_columns >= _LEAST_COLUMNS:
        _show_table(console, results)
    else:
        console.report("\n".join(align_columns([_HEAD, *map(_cells, results)])))
    if speeds is not None:
        console.report(render_speeds(speeds))
    console.report(note)
    console.report(verdict_line(results))


def check_record(
    results: Sequence[CheckResult], note: str, speeds: SpeedCheck | None
) -> dict[str, object]:
    """Return *results* as values that JSON can hold."""
    return {
        "sound": is_sound(results),
        "verdict": verdict_line(results),
        "note": note,
        "attention": [r.to_dict() for r in results if isinstance(r, ProbeRow)],
        "ways": [r.to_dict() for r in results if isinstance(r, WayResult)],
        "speeds": None if speeds is None else speeds.to_dict(),
    }


def render_speeds(speeds: SpeedCheck) -> str:
    """Return what was measured and what the table says, as lines of text."""
    source = f"table: {speeds.row.source}"
    lines = [f"speeds on {counted(speeds.threads, 'thread')} of the processor; {source}"]
    if speeds.disturbance is not None:
        why = f"{speeds.disturbance}, so these figures are not kept"
        lines.append(f"  disturbed: {why}; repeat the check on a quiet machine")
    for claim in speeds.claims:
        off = "" if claim.holds else ": the other way round" if claim.is_reversed else ": off"
        lines.append(f"  {claim.text}{off}")
    return "\n".join([*lines, *(f"  {note}" for note in speeds.changes)])


def verdict_line(results: Sequence[CheckResult]) -> str:
    """Return the verdict in one line."""
    counts = {
        status: sum(r.status == status for r in results) for status in ("right", "wrong", "refused")
    }
    slower = sum(isinstance(r, WayResult) and r.is_slower for r in results)
    refused = f", {counts['refused']} cannot run here" if counts["refused"] else ""
    more = refused + (f", {slower} slower than plain float32" if slower else "")
    if not counts["wrong"]:
        return f"sound: {counted(counts['right'], 'way')} right{more}"
    wrong = [result for result in results if result.status == "wrong"]
    why = f"{counts['wrong']} of {counted(counts['right'] + counts['wrong'], 'way')} wrong"
    if is_sound(results):
        return f"sound: {why}, but plans do not choose them, first {_name(wrong[0])}{more}"
    if not has_reference(results):
        return f"not sound: plain float32 on the processor is wrong: {wrong[-1].reason}"
    return f"not sound: {why}, and plans leave them out, first {_name(wrong[0])}{more}"


def render_verdicts(verdicts: Mapping[str, Verdict]) -> str:
    """Return when each device was checked, and what was wrong, as lines of text."""
    rows = []
    for device, verdict in verdicts.items():
        scope = "every way" if verdict.is_whole else "attention only"
        wrong = "; ".join(f"{fault.subject} ({fault.found})" for fault in verdict.faults)
        found = f"wrong: {wrong}" if wrong else "nothing wrong"
        rows.append((device, f"{verdict.made} UTC, {scope}", found))
    return "\n".join(["checks", *align_columns(rows)])


def _show_table(console: Console, results: Sequence[CheckResult]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console as RichConsole
    from rich.table import Table
    from rich.text import Text

    # With little padding, the table of a usual processor fits into 80 columns.
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for place, head in enumerate(_HEAD):
        table.add_column(head, justify="right" if place in (1, 2) else "left")
    remarks = []
    for result in results:
        name, right, pace, outcome = _cells(result)
        # A reason is a sentence, which would make the other columns narrow.
        outcome, colon, reason = outcome.partition(": ")
        remarks += [f"! {name}: {outcome}: {reason}"] if colon else []
        style = _STYLES[result.status]
        table.add_row(Text(name), Text(right), Text(pace, "dim"), Text(outcome, style))
    RichConsole(file=console.out, width=console.out_columns).print(table)
    for line in remarks:
        console.report(line)


def _cells(result: CheckResult) -> tuple[str, str, str, str]:
    outcome: str = result.status
    if isinstance(result, ProbeRow):
        right = f"{result.right}/{result.total}" if result.total else ""
        pace = f"off {result.error:.0e}" if result.total else ""
    else:
        total = sum(manner.total for manner in result.manners)
        right = f"{sum(m.right for m in result.manners)}/{total}" if total else ""
        pace = "" if result.pace is None else f"{result.pace:.2f} x"
        if result.is_slower and result.status == "right":
            outcome = "right, slower"
        if result.culprit is not None:
            outcome += f": without {result.culprit} it is right"
    if result.reason:
        outcome += f": {result.reason}"
    return one_line(_name(result)), right, pace, one_line(outcome)


def _name(result: CheckResult) -> str:
    return result.name if isinstance(result, ProbeRow) else result.way.name
