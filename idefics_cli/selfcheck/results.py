"""The results of a self-check, as values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from idefics_cli.models.planning.verdicts import Fault
from idefics_cli.selfcheck.ways import Way

Status = Literal["right", "wrong", "refused"]
# Two equal runs may differ by this factor in time, on a computer that also does other work.
_SLOWER = 1.3


@dataclass(frozen=True, slots=True)
class MannerResult:
    """How a way answered in one manner.

    Attributes:
        manner: Key of `MANNERS` in `asking.py`.
        right: Number of right replies.
        total: Number of replies.
        difference: The first wrong reply, in words; None if all are right.
        seconds: Wall time of all replies.
    """

    manner: str
    right: int
    total: int
    difference: str | None
    seconds: float


@dataclass(frozen=True, slots=True)
class WayResult:
    """The result of one way.

    Attributes:
        way: The way.
        status: "refused" means that it cannot run here.
        reason: What is wrong, or why it cannot run; "" if it is right.
        manners: One result for each manner in which it was asked.
        culprit: The kernel without which the way is right; None if there is none, or if the
            way is right.
        pace: Time of the replies in the manner "one by one", divided by the time of the reference;
            None if the way did not answer.
    """

    way: Way
    status: Status
    reason: str = ""
    manners: tuple[MannerResult, ...] = ()
    culprit: str | None = None
    pace: float | None = None

    @property
    def is_slower(self) -> bool:
        """Whether the way is clearly slower than the reference."""
        return self.pace is not None and self.pace > _SLOWER

    def to_dict(self) -> dict[str, object]:
        """Return the result for JSON."""
        spec = self.way.spec
        return {
            "way": self.way.name,
            "device": spec.device,
            "dtype": spec.dtype,
            "attention": spec.attention,
            "quantization": spec.quantization,
            "format_4bit": spec.format_4bit if spec.quantization == "4bit" else None,
            "kernels": list(spec.kernels.names),
            "cuda_graphs": spec.uses_graphs,
            "is_planned": self.way.is_planned,
            "status": self.status,
            "reason": self.reason,
            "culprit": self.culprit,
            "pace": self.pace,
            "is_slower": self.is_slower,
            "manners": [asdict(manner) for manner in self.manners],
        }


@dataclass(frozen=True, slots=True)
class ProbeRow:
    """The result of one attention on one device in one dtype, in all calls of the probe.

    Attributes:
        device: The device.
        dtype: Dtype of queries, keys and values.
        attention: Name in transformers, or a kernel of `KERNELS`.
        heads: "HEADSxKV_HEADSxWIDTH" of the text model.
        status: "refused" means that it cannot run here.
        reason: What is wrong, or why it cannot run; "" if it is right.
        right: Number of right calls.
        total: Number of calls.
        error: Largest relative error.
        allowed: Largest allowed relative error.
    """

    device: str
    dtype: str
    attention: str
    heads: str
    status: Status
    reason: str
    right: int
    total: int
    error: float
    allowed: float

    @property
    def name(self) -> str:
        """The row in words."""
        return f"attention {self.device} {self.dtype} {self.attention} {self.heads}"

    def to_dict(self) -> dict[str, object]:
        """Return the row for JSON."""
        return asdict(self)


CheckResult = WayResult | ProbeRow


def faults_of(results: Sequence[CheckResult], device: str) -> tuple[Fault, ...]:
    """Return the faults in *results* that plans must avoid on *device*, each once."""
    found = [
        fault
        for result in results
        if result.status == "wrong"
        for fault in (
            _fault_of_probe(result) if isinstance(result, ProbeRow) else _fault_of(result, results),
        )
        if fault is not None
    ]
    own = {
        (f.dtype, f.attention, f.quantization, f.format_4bit, f.kernel, f.with_graphs, f.heads): f
        for f in reversed(found)
        if f.device == device
    }
    return tuple(reversed(own.values()))


def _fault_of(result: WayResult, results: Sequence[CheckResult]) -> Fault | None:
    spec, reason = result.way.spec, result.reason
    if result.culprit is not None:
        return Fault(spec.device, reason, kernel=result.culprit)
    if not result.way.is_planned:
        return None
    return Fault(
        spec.device,
        reason,
        dtype=spec.dtype,
        attention=spec.attention,
        quantization=spec.quantization,
        format_4bit=spec.format_4bit if spec.quantization == "4bit" else None,
        with_graphs=_is_right_without_graphs(result.way, results),
    )


def _is_right_without_graphs(way: Way, results: Sequence[CheckResult]) -> bool:
    """Whether the same way without CUDA graphs is right, so that only graphs are left out."""
    plain = way.without_graphs().spec
    return way.spec.uses_graphs and any(
        isinstance(other, WayResult) and other.way.spec == plain and other.status == "right"
        for other in results
    )


def _fault_of_probe(row: ProbeRow) -> Fault:
    from idefics_cli.models.kernels.table import KERNELS

    if row.attention in KERNELS:
        return Fault(row.device, row.reason, kernel=row.attention)
    return Fault(row.device, row.reason, dtype=row.dtype, attention=row.attention, heads=row.heads)


def has_reference(results: Sequence[CheckResult]) -> bool:
    """Whether the reference is right, so that the other ways could be judged."""
    return any(
        isinstance(result, WayResult) and result.way.is_reference and result.status == "right"
        for result in results
    )


def is_sound(results: Sequence[CheckResult]) -> bool:
    """Whether every way that a plan may choose is right; False if nothing could be checked."""
    return bool(results) and not any(
        result.status == "wrong"
        and (isinstance(result, ProbeRow) or result.way.is_planned or result.way.is_reference)
        for result in results
    )
