"""Whole runs, and requests that a run refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from idefics_cli.core.errors import EXIT_FAILURE, EXIT_USAGE
from idefics_cli.demo.training import train
from idefics_cli.demo.training.dataset import Pictures
from idefics_cli.demo.training.evaluate import WEIGHTS
from idefics_cli.demo.training.worker import LOG


def losses_of(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    return [row["losses"] for row in rows]


@pytest.mark.parametrize(
    "processes", [1, pytest.param(2, marks=pytest.mark.slow, id="two processes")]
)
def test_a_tiny_run_learns_and_saves_a_model_that_loads(
    tmp_path: Path, data: Path, processes: int
) -> None:
    out = tmp_path / "out"
    flags = {
        "--out": str(out),
        "--data": str(tmp_path / "pictures"),
        "--steps": "4",
        "--pictures": str(len(Pictures(data, "train"))),
        "--batch": "4",
        "--device": "cpu",
        "--dtype": "float32",
        "--processes": str(processes),
        "--watch-seconds": "0.001",
        "--watch-pictures": "4",
    }
    code = train.main([word for flag in flags.items() for word in flag])
    losses = losses_of(out)
    language = [each["language"] for each in losses if "language" in each]

    assert code == 0
    assert len(losses) == 4
    assert language[-1] < language[0]
    assert losses[-1]["patches"] < losses[0]["patches"]
    for path in data.glob("train*"):
        assert path.read_bytes() == (tmp_path / "pictures" / path.name).read_bytes()
    names = {path.name for path in WEIGHTS.iterdir()} | {LOG}
    assert {path.name for path in out.iterdir()} == names
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in out.iterdir())
    saved = AutoModelForImageTextToText.from_pretrained(out)
    assert saved.dtype == torch.bfloat16
    assert saved.num_parameters() == 4_781_376


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "error: `--minutes` must be above 0\n"),
        (["--steps", "0"], "error: `--steps` must be at least 1\n"),
        (["--processes", "0"], "error: `--processes` must be above 0\n"),
        (["--pictures", "3"], "error: 3 pictures are too few to train on\n"),
    ],
)
def test_a_run_that_cannot_work_is_a_usage_error(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    code = train.main(["--out", str(tmp_path / "out"), "--device", "cpu", *arguments])
    out, err = capsys.readouterr()

    assert (code, out) == (EXIT_USAGE, "")
    assert err.startswith(message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("pictures", "data", "message"),
    [
        ("200", "file", "error: cannot write the model or its pictures: "),
        ("900000000000", "folder", "error: 900000000000 pictures take 32689422.4 GiB"),
    ],
)
def test_a_place_that_cannot_hold_the_pictures_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    pictures: str,
    data: str,
    message: str,
) -> None:
    (tmp_path / "file").write_text("x")
    arguments = ["--out", str(tmp_path / "out"), "--data", str(tmp_path / data)]
    code = train.main([*arguments, "--pictures", pictures, "--device", "cpu", "--processes", "1"])

    assert code == EXIT_FAILURE
    assert capsys.readouterr().err.startswith(message)


def test_a_folder_of_something_else_is_not_trained_into(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "thesis.txt").write_text("keep")
    code = train.main(["--out", str(folder), "--steps", "1"])

    assert code == EXIT_USAGE
    assert "was not made by training" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
