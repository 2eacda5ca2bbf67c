"""The scenario `scale`: what a run costs, with stand-ins in place of models."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from idefics_cli.bench.report import Report
from idefics_cli.bench.run import run
from idefics_cli.bench.stand_ins import WorkerFigures
from idefics_cli.cli.commands.bench import scaling
from idefics_cli.cli.commands.bench.choices import parse
from idefics_cli.cli.commands.bench.scaling import measure_bytes, run_workers
from tests.support import commands
from tests.support.bench import QUICK, Stand


def test_the_rows_compare_with_the_goals_and_with_one_worker() -> None:
    stand, report = Stand(), Report()
    run(["scale"], stand.world, replace(QUICK, quick=False), report)
    rows = {row.name: row for row in report.rows}
    costs = ["cost, 2 ms a picture", "cost, 20 ms a picture"]
    assert list(rows) == ["memory of a picture", "2 workers", "8 workers", *costs]
    assert rows["8 workers"].ratio == pytest.approx(1.0)
    assert rows["8 workers"].ours.median == 392.0
    assert [rows[name].ratio for name in costs] == pytest.approx([100 / 80] * 2)
    assert rows["memory of a picture"].ratio == pytest.approx(600 / 590)
    assert not report.skipped
    assert stand.plain_specs == [], "no model is loaded"


def test_a_run_without_names_leaves_it_out() -> None:
    given = {"weights": None, "batch_sizes": None, "contexts": None, "new_tokens": None}
    more = {"rounds": None, "seconds": None, "plain_quantization": None}
    assert "scale" not in parse([], quick=False, **given, **more).names
    assert parse(["scale"], quick=False, **given, **more).names == ("scale",)


def test_the_command_needs_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = WorkerFigures(50.0, 1e-4)
    monkeypatch.setattr(scaling, "run_workers", lambda count, *_: replace(figures, rate=count * 50))
    monkeypatch.setattr(scaling, "measure_bytes", lambda *_: 500.0)
    for words in ((), ("-m", "smolvlm-2.2b")):
        ran = commands.run("bench", "scale", "--quick", *words)
        assert ran.code == 0, ran.err
        assert ran.out.startswith("stand-ins for models, on ")
        assert "scale: 2 workers" in ran.out


def test_workers_and_memory_are_measured(tmp_path: Path) -> None:
    figures = run_workers(2, 40, 0.02, tmp_path)
    assert 1 < figures.rate < 101
    assert 0 < figures.driver_seconds < 0.1
    assert math.isfinite(measure_bytes(2000, tmp_path))
    assert [*tmp_path.iterdir()] == []
