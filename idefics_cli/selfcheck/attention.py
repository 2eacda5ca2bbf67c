"""The check of attention at the shape of a model; its calls are in `attention_probe.py`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from idefics_cli.core.types import DtypeName, LoadSpec
from idefics_cli.models.families.spec import Shape
from idefics_cli.selfcheck.results import ProbeRow
from idefics_cli.selfcheck.ways import Way

if TYPE_CHECKING:
    from idefics_cli.models.kernels.attention_probe import AttentionError


@dataclass(frozen=True, slots=True)
class AttentionTarget:
    """One attention to check.

    Attributes:
        device: The device.
        dtype: Dtype of queries, keys and values.
        attention: Name in transformers, or a kernel of `KERNELS`.
    """

    device: str
    dtype: DtypeName
    attention: str


def targets_of(ways: Iterable[Way]) -> list[AttentionTarget]:
    """Return each attention that *ways* use, once."""
    found = [
        AttentionTarget(spec.device, spec.dtype, name)
        for spec in (way.spec for way in ways if way.is_planned and way.refusal is None)
        for name in _names(spec)
    ]
    return list(dict.fromkeys(found))


def _names(spec: LoadSpec) -> tuple[str, ...]:
    kernel = spec.kernels.attention
    if kernel is None:
        return (spec.attention,)
    # On a GPU, both are checked: torch's attention takes the place of the kernel if the kernel is
    # wrong.
    return (kernel,) if spec.device == "cpu" else (spec.attention, kernel)


def check_attention(targets: Iterable[AttentionTarget], shape: Shape) -> Iterator[ProbeRow]:
    """Yield the result of each of *targets* with the heads of the text model of *shape*."""
    from idefics_cli.models.kernels.attention_probe import (
        TOLERANCE,
        HeadShape,
        probe_attention,
    )

    text = HeadShape(shape.heads, shape.kv_heads, shape.head_dim)
    for target in targets:
        allowed = TOLERANCE[target.dtype]
        try:
            errors = probe_attention(
                target.attention, device=target.device, dtype=target.dtype, text=text
            )
        except (RuntimeError, ValueError, ImportError, AttributeError, KeyError) as error:
            # The error shows that a package or a driver lacks something. The attention is refused,
            # because replies with it would fail too.
            lines = str(error).strip().splitlines() or [type(error).__name__]
            yield _row(target, str(text), [], allowed, refusal=lines[0][:200])
            continue
        yield _row(target, str(text), errors, allowed)


def _row(
    target: AttentionTarget,
    heads: str,
    errors: list[AttentionError],
    allowed: float,
    *,
    refusal: str | None = None,
) -> ProbeRow:
    wrong = [each for each in errors if not each.error <= allowed]
    reason = refusal or ""
    if wrong:
        reason = f"{wrong[0].call} is off by {wrong[0].error:.2g}, and {allowed:g} is allowed"
    return ProbeRow(
        target.device,
        target.dtype,
        target.attention,
        heads,
        "refused" if refusal is not None else "wrong" if wrong else "right",
        reason,
        len(errors) - len(wrong),
        len(errors),
        max((each.error for each in errors), default=0.0),
        allowed,
    )
