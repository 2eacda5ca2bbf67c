"""The ratios of a benchmark as a bar chart with a logarithmic axis."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

from idefics_cli.bench.report import Report, ReportRow
from idefics_cli.ui.views.bench import times, value

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

# The chart is drawn at twice its size and scaled down, for smooth edges.
_SCALE = 2
_WIDTH, _LEFT, _RIGHT = 1200, 330, 330
_TOP, _ROW, _BOTTOM = 84, 34, 52
_INK, _FAINT, _GRID = "#1f2933", "#7b8794", "#e4e7eb"
_FASTER, _SLOWER, _WRONG = "#2a7f62", "#c98a1b", "#c0392b"


def draw_plot(report: Report, title: str) -> bytes:
    """Return a PNG with one bar for each row of *report*, which has at least one."""
    from PIL import Image, ImageDraw

    height = _TOP + _ROW * len(report.rows) + _BOTTOM
    image = Image.new("RGB", (_WIDTH * _SCALE, height * _SCALE), "white")
    chart = _Chart(ImageDraw.Draw(image), report)
    chart.heading(title)
    chart.axis(height - _BOTTOM)
    for number, row in enumerate(report.rows):
        chart.bar(row, _TOP + _ROW * number)
    return _png(image.resize((_WIDTH, height), Image.Resampling.LANCZOS))


class _Chart:
    """Draws the parts of the chart; all lengths are pixels of the finished picture."""

    def __init__(self, canvas: ImageDraw, report: Report) -> None:
        self._canvas = canvas
        ratios = [r for row in report.rows for r in (*row.range, row.ratio) if _is_drawn(r)]
        self._low = min([0.5, *ratios])
        self._high = max([4.0, *ratios]) * 1.05

    def heading(self, title: str) -> None:
        """Write the title."""
        self._text((24, 18), title, 20)
        told = "times as fast as plain transformers (median; line: least and greatest round)"
        self._text((24, 48), told, 14, _FAINT)

    def axis(self, bottom: int) -> None:
        """Draw a line for each power of two."""
        first, last = math.ceil(math.log2(self._low)), math.floor(math.log2(self._high))
        for power in range(first, last + 1):
            x = self._x(2.0**power)
            self._line((x, _TOP - 6, x, bottom), _INK if power == 0 else _GRID, 1)
            self._text((x, bottom + 10), f"{2.0**power:g}x", 13, _FAINT, anchor="ma")

    def bar(self, row: ReportRow, top: int) -> None:
        """Draw one figure."""
        middle = top + _ROW / 2
        self._text((_LEFT - 14, middle), f"{row.scenario}: {row.name}", 14, anchor="rm")
        if not _is_drawn(row.ratio):
            return
        ends = sorted((self._x(1.0), self._x(row.ratio)))
        color = _FASTER if row.ratio >= 1 else _SLOWER
        color = color if row.agreement.agrees else _WRONG
        box = tuple(v * _SCALE for v in (ends[0], top + 7, max(ends[1], ends[0] + 2), top + 27))
        self._canvas.rectangle((box[0], box[1], box[2], box[3]), fill=color)
        low, high = (self._x(ratio) for ratio in row.range)
        self._line((low, middle, high, middle), _INK, 2)
        differ = "" if row.agreement.agrees else ", answers DIFFER"
        values = f"{value(row.ours.median, row.unit)} : {value(row.plain.median, row.unit)}"
        x = max(ends[1], high) + 12
        self._text((x, middle), times(row.ratio), 15, color, anchor="lm")
        self._text((x + 70, middle), values + differ, 13, _FAINT, anchor="lm")

    def _x(self, ratio: float) -> float:
        share = math.log(ratio / self._low) / math.log(self._high / self._low)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def _line(self, ends: tuple[float, float, float, float], color: str, width: int) -> None:
        x0, y0, x1, y1 = (v * _SCALE for v in ends)
        self._canvas.line((x0, y0, x1, y1), fill=color, width=width * _SCALE)

    def _text(
        self,
        place: tuple[float, float],
        text: str,
        size: int,
        color: str = _INK,
        *,
        anchor: str = "la",
    ) -> None:
        x, y = (v * _SCALE for v in place)
        self._canvas.text((x, y), text, fill=color, font=_font(size), anchor=anchor)


def _is_drawn(ratio: float) -> bool:
    return math.isfinite(ratio) and ratio > 0


def _font(size: int) -> FreeTypeFont | ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size * _SCALE)


def _png(image: Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
