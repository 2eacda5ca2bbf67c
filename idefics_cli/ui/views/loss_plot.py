"""The loss of a tuning run as an SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

_WIDTH, _HEIGHT = 900, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 48, 44
_INK, _FAINT, _GRID = "#1f2933", "#7b8794", "#e4e7eb"
_TRAINED, _VALIDATION = "#9fb3c8", "#2a7f62"
_LINES = 4

Points = Sequence[tuple[float, float]]


def draw_loss(log: Sequence[Mapping[str, object]]) -> str:
    """Return an SVG of the losses in *log*, the lines of training.jsonl.

    One curve is the loss of each step, smoothed; the other has a dot for each evaluation.
    """
    trained, validation = _smooth(_points(log, "loss")), _points(log, "validation_loss")
    values = [y for _, y in [*trained, *validation]]
    last = max([x for x, _ in [*trained, *validation]], default=1.0) or 1.0
    low, high = min(values, default=0.0), max(values, default=1.0)
    low, high = (low, high) if high > low else (low - 0.5, low + 0.5)

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x = _LEFT + point[0] / last * (_WIDTH - _LEFT - _RIGHT)
        y = _TOP + (high - point[1]) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)
        return round(x, 1), round(y, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        _text(_LEFT, 26, "Loss of the labelled tokens", _INK),
        _text(_WIDTH - 260, 26, "training (smoothed)", _FAINT),
        _text(_WIDTH - 110, 26, "validation", _VALIDATION),
    ]
    for number in range(_LINES + 1):
        value = low + (high - low) * number / _LINES
        _, y = place((0, value))
        parts.append(f'<path d="M{_LEFT} {y}H{_WIDTH - _RIGHT}" stroke="{_GRID}"/>')
        parts.append(_text(_LEFT - 8, y + 4, f"{value:.2f}", _FAINT, anchor="end"))
    parts.append(_text(_WIDTH - _RIGHT, _HEIGHT - 14, f"step {last:.0f}", _FAINT, anchor="end"))
    parts += [_curve([place(p) for p in trained], _TRAINED)]
    parts += [_curve([place(p) for p in validation], _VALIDATION)]
    parts += [
        f'<circle cx="{x}" cy="{y}" r="3.5" fill="{_VALIDATION}"/>'
        for x, y in (place(p) for p in validation)
    ]
    return "\n".join([*parts, "</svg>", ""])


def _points(log: Sequence[Mapping[str, object]], key: str) -> list[tuple[float, float]]:
    found = [(line.get("step"), line.get(key)) for line in log]
    return [
        (float(x), float(y))
        for x, y in found
        if isinstance(x, int) and isinstance(y, int | float) and math.isfinite(y)
    ]


def _smooth(points: Points) -> list[tuple[float, float]]:
    """Return *points* with running means over up to a fiftieth of them."""
    share = 1 / max(1, len(points) // 50)
    smoothed: list[tuple[float, float]] = []
    for x, y in points:
        former = smoothed[-1][1] if smoothed else y
        smoothed.append((x, former + share * (y - former)))
    return smoothed


def _curve(points: Points, color: str) -> str:
    steps = "L".join(f"{x} {y}" for x, y in points)
    return f'<path d="M{steps}" fill="none" stroke="{color}" stroke-width="2"/>' if steps else ""


def _text(x: float, y: float, text: str, color: str, *, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" fill="{color}" text-anchor="{anchor}">{text}</text>'
