"""The result of a run: a row for each figure of both sides, and the figures that are missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from idefics_cli.bench.agreement import Agreement
from idefics_cli.bench.measure import REFERENCE_LIMIT, Series
from idefics_cli.hardware.load import FOREIGN_LIMIT

VERSION = 1


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One figure, measured for both sides.

    Attributes:
        scenario: A key of `run.SCENARIOS`.
        name: Name of the figure in its scenario, such as "batch 4, context 800".
        compares: What was measured, in words, such as "files to captions".
        unit: "s", "tokens/s", "pictures/s", "rows/s", "answers/s", "GB", "bytes" or "us".
        more_is_better: Whether a larger value is better.
        ours: Our value in each round.
        plain: Value of plain transformers in each round.
        agreement: Agreement of the answers of both sides.
        foreign_cores: Cores that other programs kept busy; None if unknown.
        reference: Memory bandwidth of the hardware during the measurement, in GB/s.
        notes: More facts that a reader needs.
    """

    scenario: str
    name: str
    compares: str
    unit: str
    more_is_better: bool
    ours: Series
    plain: Series
    agreement: Agreement
    foreign_cores: float | None = None
    reference: Series | None = None
    notes: tuple[str, ...] = ()

    @property
    def ratio(self) -> float:
        """How many times as good our median is as that of plain transformers; below 1 if worse."""
        return self._ratio(self.ours.median, self.plain.median)

    @property
    def best_ratio(self) -> float:
        """The ratio of the best rounds instead of the medians; noise affects it least."""
        return self._ratio(self.best(self.ours), self.best(self.plain))

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest ratio among the rounds."""
        ratios = [
            self._ratio(ours, plain)
            for ours, plain in zip(self.ours.values, self.plain.values, strict=False)
        ]
        return min(ratios), max(ratios)

    @property
    def disturbances(self) -> tuple[str, ...]:
        """What disturbed the figures, in words."""
        found = []
        if self.foreign_cores is not None and self.foreign_cores > FOREIGN_LIMIT:
            found.append(f"other programs kept {self.foreign_cores:.1f} cores busy")
        if self.reference and self.reference.most > REFERENCE_LIMIT * self.reference.least:
            change = self.reference.most / self.reference.least
            found.append(f"memory bandwidth changed by a factor of {change:.1f} meanwhile")
        return tuple(found)

    def best(self, series: Series) -> float:
        """Return the best value of *series*."""
        return series.most if self.more_is_better else series.least

    def _ratio(self, ours: float, plain: float) -> float:
        above, below = (ours, plain) if self.more_is_better else (plain, ours)
        return above / below if below > 0 else float("nan")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A figure that was not measured.

    Attributes:
        scenario: Scenario of the figure.
        name: Name of the figure; "" if the whole scenario was left out.
        why: Why there is no figure.
        is_failure: Whether the figure is missing because of an error.
    """

    scenario: str
    name: str
    why: str
    is_failure: bool = False


@dataclass(slots=True)
class Report:
    """The figures that a run has measured so far.

    Attributes:
        about: Machine, versions, model and settings, as values for JSON.
        rows: Figures, in the order of measurement.
        skipped: Figures that were left out.
        is_interrupted: Whether the user stopped the run.
    """

    about: Mapping[str, object] = field(default_factory=dict)
    rows: list[ReportRow] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    is_interrupted: bool = False

    @property
    def disagreements(self) -> list[ReportRow]:
        """Rows whose answers differ more than allowed."""
        return [row for row in self.rows if not row.agreement.agrees]

    @property
    def failures(self) -> list[Skipped]:
        """Figures that are missing because of an error."""
        return [item for item in self.skipped if item.is_failure]

    def record(self) -> dict[str, object]:
        """Return the report as values for JSON."""
        return {
            "version": VERSION,
            **self.about,
            "rows": [row_record(row) for row in self.rows],
            "skipped": [asdict(item) for item in self.skipped],
            "interrupted": self.is_interrupted,
            "agrees": not self.disagreements,
        }


def row_record(row: ReportRow) -> dict[str, object]:
    """Return *row* as values for JSON."""
    low, high = row.range
    return {
        "scenario": row.scenario,
        "name": row.name,
        "compares": row.compares,
        "unit": row.unit,
        "more_is_better": row.more_is_better,
        "ours": _series(row, row.ours),
        "plain": _series(row, row.plain),
        "ratio": row.ratio,
        "best_ratio": row.best_ratio,
        "ratio_range": [low, high],
        "agreement": asdict(row.agreement),
        "foreign_cores": row.foreign_cores,
        "reference_gb_per_second": row.reference and list(row.reference.values),
        "disturbances": list(row.disturbances),
        "notes": list(row.notes),
    }


def _series(row: ReportRow, series: Series) -> dict[str, object]:
    return {
        "median": series.median,
        "best": row.best(series),
        "values": list(series.values),
    }
