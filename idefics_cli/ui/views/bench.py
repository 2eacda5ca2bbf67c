"""The text of a benchmark: its progress, the table of its figures, and remarks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from idefics_cli.bench.report import Report, ReportRow, Skipped
from idefics_cli.core.text import one_line
from idefics_cli.core.units import counted
from idefics_cli.ui.terminal.console import Console, write

_HEAD = ("", "idefics", "transformers", "ratio", "rounds from … to", "answers")
# On a narrower terminal, rich would cut off digits in the cells of the table, so there is no table.
_LEAST_COLUMNS = 76
_ERASE = "\r\x1b[2K"


class BenchProgress:
    """Shows on stderr what is being measured, and each figure when it is known.

    There is no spinner, because its thread would take time from the measurement.

    Args:
        console: The output.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str) -> None:
        """Show *text* as the current step until the next step; in a pipe, do nothing."""
        if self._console.quiet:
            return
        if self._console.draws:
            write(self._console.err, f"{_ERASE}{one_line(text)} …")

    def show(self, result: ReportRow | Skipped) -> None:
        """Show a figure, or the reason why there is none."""
        self.clear()
        self._console.tell(_line(result))

    def clear(self) -> None:
        """Remove the line that `say` has written."""
        if self._console.draws and not self._console.quiet:
            write(self._console.err, _ERASE)


def show_report(console: Console, report: Report, title: str) -> None:
    """Write *report* to stdout: a coloured table on a terminal, otherwise plain lines."""
    if not (console.is_terminal and console.draws):
        console.line(render_report(report, title))
        return
    if console.out_columns < _LEAST_COLUMNS:
        console.report("\n".join([one_line(title), *_paragraphs(report)]))
    else:
        _show_table(console, report, title)
    for line in _remarks(report):
        console.report(line)


def render_report(report: Report, title: str) -> str:
    """Return *report* as plain text, without a newline at the end."""
    rows = [_HEAD, *(_cells(row) for row in report.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [one_line(title)]
    for row in rows:
        cells = [
            cell.rjust(width) if 0 < place < 5 else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([*lines, *_remarks(report)])


def _show_table(console: Console, report: Report, title: str) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console as RichConsole
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(one_line(title)), box=SIMPLE_HEAD, title_justify="left")
    for place, head in enumerate(_HEAD):
        table.add_column(head, justify="right" if 0 < place < 5 else "left")
    last = ""
    for row in report.rows:
        if last and row.scenario != last:
            table.add_section()
        last = row.scenario
        name, ours, plain, ratio, spread, answers = _cells(row)
        good = "bold" if row.ratio >= 1 else "bold magenta"
        bad = "" if row.agreement.agrees else "bold red"
        table.add_row(
            Text(name), ours, plain, Text(ratio, good), Text(spread, "dim"), Text(answers, bad)
        )
    RichConsole(file=console.out, width=console.out_columns).print(table)


def _paragraphs(report: Report) -> list[str]:
    """Return the figures of *report* as lines without columns, for a narrow terminal."""
    lines = []
    for row in report.rows:
        name, ours, plain, ratio, spread, answers = _cells(row)
        lines += [
            name,
            f"  idefics {ours}, transformers {plain}",
            f"  {ratio} ({spread}), {answers}",
        ]
    return lines


def _cells(row: ReportRow) -> tuple[str, str, str, str, str, str]:
    low, high = row.range
    mark = " *" if row.disturbances else ""
    return (
        one_line(f"{row.scenario}: {row.name}"),
        value(row.ours.median, row.unit),
        value(row.plain.median, row.unit),
        times(row.ratio) + mark,
        f"{times(low)} … {times(high)}, n={len(row.ours.values)}",
        _answers(row),
    )


def _answers(row: ReportRow) -> str:
    found = row.agreement
    if not found.agrees:
        return "DIFFER"
    if found.gap is not None:
        return f"{found.equal:.0%} equal, gap {found.gap:.2g}"
    return "equal" if found.equal == 1 else f"{found.equal:.0%} equal"


def value(number: float, unit: str) -> str:
    """Return *number* with three digits and its unit, as "12.3 ms" or "4.56 tokens/s"."""
    if unit == "s" and number < 1:
        number, unit = number * 1000, "ms"
    return f"{_digits(number)} {unit}"


def times(ratio: float) -> str:
    """Return *ratio* as "2.13x"."""
    return f"{ratio:.2f}x" if ratio < 10 else f"{_digits(ratio)}x"


def _digits(number: float) -> str:
    if not math.isfinite(number) or number == 0:
        return f"{number:g}"
    places = max(0, 2 - math.floor(math.log10(abs(number))))
    return f"{number:,.{places}f}"


def _line(result: ReportRow | Skipped) -> str:
    if isinstance(result, Skipped):
        name = f"{result.scenario}: {result.name}" if result.name else result.scenario
        return f"{name}: {'failed' if result.is_failure else 'left out'}: {result.why}"
    name, ours, plain, ratio, _, answers = _cells(result)
    return f"{name}: {ours} against {plain}, {ratio}, answers {answers}"


def _remarks(report: Report) -> list[str]:
    lines = _legend(report.rows)
    lines += [
        one_line(f"  {row.scenario}: {row.name}: {n}") for row in report.rows for n in _told(row)
    ]
    lines += [one_line(line) for line in _disturbed(report.rows)]
    lines += [one_line(f"! {_line(item)}") for item in report.skipped]
    lines += [
        one_line(f"! {row.scenario}: {row.name}: the answers differ: {row.agreement.text}")
        for row in report.disagreements
    ]
    if report.is_interrupted:
        lines.append("! interrupted: only what was measured until then")
    return lines


def _legend(rows: Sequence[ReportRow]) -> list[str]:
    if not rows:
        return ["nothing was measured"]
    lines = ["medians; a ratio above 1 means that idefics is faster, or needs less memory"]
    readings = [v for row in rows if row.reference for v in row.reference.values]
    if readings:
        low, high = min(readings), max(readings)
        lines.append(f"memory bandwidth meanwhile: {_digits(low)} to {_digits(high)} GB/s")
    if any(row.agreement.gap is not None for row in rows):
        lines.append(
            "gap: how much worse than the best a token of idefics is in transformers' own logits, "
            "in standard deviations of these (a random token: about 4)"
        )
    return lines


def _told(row: ReportRow) -> list[str]:
    return [note for note in row.notes if not note.endswith("prompt tokens")]


def _disturbed(rows: Sequence[ReportRow]) -> list[str]:
    marked = [row for row in rows if row.disturbances]
    if not marked:
        return []
    worst = max(marked, key=lambda row: row.foreign_cores or 0.0)
    return [
        f"* disturbed: {len(marked)} of {counted(len(rows), 'figure')}; repeat the benchmark on a "
        f"quiet machine. The worst is {worst.scenario}: {worst.name}: "
        f"{' and '.join(worst.disturbances)}"
    ]
