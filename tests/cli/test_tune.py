"""`idefics tune`: an adapter from pictures with captions, and what goes wrong."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from idefics_cli.cli.services import Services
from idefics_cli.demo.samples import write_samples
from tests.support.commands import Ran, run

pytest.importorskip("peft")


def write_style(folder: Path, style: Callable[[str], str], *, count: int, seed: int = 0) -> None:
    """Write pictures of scenes to *folder*, with captions in a style of their own."""
    samples = write_samples(folder, count=count, seed=seed)
    rows = [{"file_name": each.file_name, "caption": style(each.caption)} for each in samples]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def easy_style(caption: str) -> str:
    return caption[0].lower() + caption[1:].rstrip(".").replace(" on ", ", ")


def hard_style(caption: str) -> str:
    what, _, where = caption.rstrip(".").partition(" on ")
    return f"PHOTO // {what[0].lower()}{what[1:]} // {where} //"


@pytest.fixture
def data(here: Path) -> Path:
    write_style(here / "photos", easy_style, count=6)
    return here / "photos"


def tune(*arguments: str) -> Ran:
    return run("tune", *arguments, "-m", "demo", services=Services(stdin=None))


def captions_in(file: str) -> list[str]:
    return [json.loads(line)["caption"] for line in Path(file).read_text().splitlines()]


QUICK = (
    "photos",
    "-o",
    "out",
    "--replay",
    "0",
    "--epochs",
    "2",
    "--batch-size",
    "3",
    "--learning-rate",
    "0.01",
)

SHORT = (*QUICK, "--epochs", "1")  # where it does not matter what is learned


@dataclass(frozen=True)
class Finished:
    """A run to the end, and the folder in which it was started."""

    words: tuple[str, ...]
    folder: Path
    ran: Ran

    @property
    def result(self) -> Any:
        """What the run wrote about itself."""
        return json.loads((self.folder / "out" / "idefics.json").read_text())["result"]

    def copy(self, folder: Path) -> None:
        """Copy the pictures and the output to *folder*."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)


def finish(folder: Path, *words: str) -> Finished:
    write_style(folder / "photos", easy_style, count=6)
    with contextlib.chdir(folder):
        return Finished(words, folder, tune(*words))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run with choices that later captions follow."""
    words = (*SHORT, "-p", "What is in {stem}?", "--splitting", "--longest-edge", "56")
    return finish(tmp_path_factory.mktemp("adapter"), *words)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run that trains all weights, with own answers to other questions."""
    words = ("photos", "-o", "out", "--epochs", "1", "--batch-size", "3", "--full")
    more = ("--replay", "0.5", "--validation", "photos")
    return finish(tmp_path_factory.mktemp("full"), *words, *more)


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run that also learns own answers to other questions."""
    words = ("photos", "-o", "out", "--epochs", "1", "--batch-size", "3", "--replay", "2")
    return finish(tmp_path_factory.mktemp("replayed"), *words)


def test_a_run_writes_an_adapter_that_answers_as_its_last_evaluation(data: Path) -> None:
    # After fewer steps, a caption may hang on the rounding of a tie.
    ran = tune(*QUICK, "--epochs", "4", "--validation", "photos", "--json", "--plot")

    assert ran.code == 0
    result = json.loads(ran.out)
    assert (result["rows"], result["validation_rows"], result["steps"]) == (6, 6, 8)
    assert [each["step"] for each in result["evaluations"]] == list(range(9))
    losses = [each["loss"] for each in result["evaluations"]]
    assert losses[-1] < losses[0] / 2
    assert set(os.listdir("out")) == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "idefics.json",
        "loss.svg",
        "samples.html",
        "training.jsonl",
    }
    assert "training an adapter of 221,184 weights beside 28 layers of the text model" in ran.err
    card = Path("out/README.md").read_text()
    assert "trained on 6 rows of `photos` (221,184 weights, 8 steps)" in card
    assert Path("out/loss.svg").read_text().startswith("<svg")
    assert "scene-000.png" in Path("out/samples.html").read_text()

    check_captions(result, "--adapter", "out")


def check_captions(result: Any, *model: str) -> None:
    """Check that captions by *model* are those of the last evaluation in *result*."""
    ran = run("caption", "photos", *model, "-o", "new.jsonl", services=Services(stdin=None))
    assert ran.code == 0
    captions = captions_in("new.jsonl")
    assert captions == [sample["after"] for sample in result["samples"]]
    assert captions != [sample["before"] for sample in result["samples"]]


def test_the_weights_themselves_are_trained_with_full_into_a_model_for_m(
    full: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(full.folder)
    assert full.ran.code == 0
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(os.listdir("out"))
    check_captions(full.result, "-m", "./out")


def test_a_model_of_an_earlier_run_is_trained_further_as_any_other(
    full: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(full.folder)
    assert Path("out/replay.json").exists()
    words = ("photos", "-m", "./out", "--full", "-o", "next", "--replay", "0", "--epochs", "1")
    assert run("tune", *words, services=Services(stdin=None)).code == 0

    record = json.loads(Path("next/idefics.json").read_text())
    assert (record["run"]["model"], record["finished"]) == (str(Path("out").resolve()), True)
    assert not Path("next/replay.json").exists()
    again = run("tune", *words, services=Services(stdin=None))
    assert again.code == 0
    assert "note: next is done; `--overwrite` starts again" in again.err.splitlines()


def test_a_dry_run_tells_rows_tokens_memory_and_time_and_writes_nothing(data: Path) -> None:
    ran = tune(*QUICK, "--dry-run")
    assert ran.code == 0
    lines = dict(line.split(None, 1) for line in ran.out.splitlines())
    assert lines["rows"] == "5 to learn, 1 to try the model on"
    assert lines["trained"] == "221,184 weights beside 28 layers"
    assert lines["steps"].startswith("4, in about ")
    assert lines["memory"].endswith(" GiB of RAM")
    record = json.loads(tune(*QUICK, "--dry-run", "--json").out)
    assert record["trained"] == 221184
    assert record["memory"]["trained"] == 16 * 221184
    assert not Path("out").exists()


def test_lines_that_are_no_captions_do_not_change_the_number_of_other_rows(data: Path) -> None:
    metadata = data / "metadata.jsonl"
    rows = [json.loads(line) for line in metadata.read_text().splitlines()]
    several = [
        {**row, "caption": [row["caption"], "A further line."], "question": "What is there?"}
        for row in rows
    ]
    metadata.write_text("".join(json.dumps(row) + "\n" for row in several))
    (data / "scene-003.png").unlink()
    ran = tune(*SHORT, "--skip-bad")
    assert ran.code == 3
    told = (
        "4 rows to learn, 1 to try the model on, 7 left out "
        "(further line: 6, unreadable picture: 1)"
    )
    assert told in ran.err.splitlines()
    # The question of all rows is that of later captions.
    assert json.loads(Path("out/idefics.json").read_text())["run"]["prompt"] == "What is there?"


def test_captions_with_the_adapter_see_and_ask_as_in_the_training(
    adapter: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(adapter.folder)
    assert adapter.ran.code == 0
    record = json.loads(Path("out/idefics.json").read_text())["run"]
    assert (record["splitting"], record["longest_edge"]) == (True, 56)
    assert (record["prompt"], record["commit"]) == ("What is in {stem}?", None)
    (sample, *_) = json.loads(Path("out/idefics.json").read_text())["result"]["samples"]
    assert sample["question"] == f"What is in {Path(sample['source']).stem}?"

    ran = run(
        *("caption", "photos", "--adapter", "out", "-o", "new.jsonl"), services=Services(stdin=None)
    )
    assert ran.code == 0
    settings = json.loads(Path("new.jsonl.run.json").read_text())["settings"]
    assert (settings["splitting"], settings["longest edge"]) == (True, 56)
    assert settings["prompt"] == "What is in {stem}?"


def test_a_finished_run_is_not_repeated(adapter: Finished, here: Path) -> None:
    adapter.copy(here)
    before = Path("out/adapter_model.safetensors").stat().st_mtime_ns
    again = tune(*adapter.words)
    assert (again.code, again.err.splitlines()[-1]) == (
        0,
        "note: out is done; `--overwrite` starts again",
    )
    assert Path("out/adapter_model.safetensors").stat().st_mtime_ns == before
    other = tune(*adapter.words, "--rank", "4")
    assert other.code == 2
    assert "rank was 16, now 4; alpha was 32.0, now 8.0" in other.err


def test_overwrite_starts_again_with_other_questions_of_which_none_is_for_later_captions(
    adapter: Finished, here: Path
) -> None:
    adapter.copy(here)
    metadata = here / "photos" / "metadata.jsonl"
    rows = [json.loads(line) for line in metadata.read_text().splitlines()]
    for index, row in enumerate(rows):
        row["question"] = f"What is there? {index % 2 or ''}".strip()
    metadata.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert tune(*SHORT, "--rank", "4", "--overwrite").code == 0
    record = json.loads(Path("out/idefics.json").read_text())
    assert (record["run"]["prompt"], record["run"]["settings"]["rank"]) == (None, 4)


def test_each_wrong_row_is_named_and_a_rehearsal_goes_on(data: Path) -> None:
    rows = (data / "metadata.jsonl").read_text().splitlines()
    rows[2:4] = ['{"file_name": "gone.png", "caption": "A"}', '{"caption": "A"}']
    (data / "metadata.jsonl").write_text("\n".join(rows))
    for arguments, code in (((), 1), (("--dry-run",), 3)):
        ran = tune(*QUICK, *arguments)
        assert ran.code == code
        assert "warning: photos/metadata.jsonl:3: no such file: `photos/gone.png`" in ran.err
        assert "warning: photos/metadata.jsonl:4: no column names a picture" in ran.err


def test_validation_with_pictures_that_are_learned_is_told(data: Path) -> None:
    write_style(data.parent / "other", easy_style, count=6, seed=9)
    (data.parent / "other" / "scene-000.png").write_bytes((data / "scene-001.png").read_bytes())

    ran = tune(*QUICK, "--validation", "other", "--dry-run")
    assert "pictures of 1 row for validation are learned, such as those of other/meta" in ran.err


def test_a_missing_picture_is_named_before_the_model_is_loaded(data: Path) -> None:
    (data / "scene-003.png").unlink()
    ran = tune(*SHORT)
    assert ran.code == 1
    assert "1 row of `photos` cannot be used" in ran.err
    assert "scene-003.png" in ran.err
    assert "hint: `--images DIR` says where the pictures are" in ran.err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("photos",), "a folder for the adapter is missing"),
        (("photos", "-o", "photos"), "photos holds other files"),
        ((*SHORT, "--train", "head"), "--train must be text, connector or vision, not `head`"),
        ((*SHORT, "--rank", "0"), "--rank must be from 1 to 1024, not `0`"),
        (
            (*SHORT, "--epochs", "1e308"),
            "--epochs must be more than 0 and at most 100000, not `1e+308`",
        ),
        ((*SHORT, "--dropout", "1"), "--dropout must be less than 1, not `1`"),
        ((*SHORT, "--learn", "some"), "--learn must be all or last, not `some`"),
        ((*SHORT, "--validation", "2"), "--validation must be more than 0 and less than 1"),
        ((*SHORT, "--validation", "no"), "--validation must be a share, such as 0.1, or data"),
        ((*SHORT, "--full", "--rank", "4"), "--rank is for adapters, and --full trains"),
        ((*SHORT, "--dtype", "float16"), "training in float16 ends in NaN"),
        ((*SHORT, "--quantization", "8bit"), "weights in 8bit cannot be trained"),
        ((*SHORT, "--dora", "--quantization", "4bit"), "--dora needs weights that are not in 4bit"),
        ((*SHORT, "-p", "{stein}?"), "unknown field `{stein}`"),
        ((*SHORT, "-p", "{existing}?"), "`{existing}` in the prompt is the caption that the model"),
        ((*SHORT, "--most-tokens", "5"), "has no row to train on (too long: 6)"),
    ],
)
def test_a_mistake_has_one_message(arguments: tuple[str, ...], message: str, data: Path) -> None:
    ran = tune(*arguments)
    assert ran.code == 2
    assert message in ran.err
    assert ran.err.count("error:") == 1
    assert not Path("out").exists()


@pytest.mark.usefixtures("data")
def test_missing_peft_is_told_before_the_data_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    ran = tune(*QUICK)
    assert ran.code == 1
    assert ran.err.startswith("error: training needs the package `peft`")
    assert not Path("out").exists()


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize(
    "place",
    [
        "idefics_cli.training.preparing.prepare_examples",
        "idefics_cli.models.loading.training.load_for_training",
        "idefics_cli.training.tuning.run.TuneRun",
    ],
)
def test_ctrl_c_before_the_first_step_is_told_and_leaves_nothing(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(place, interrupt)
    ran = tune(*QUICK)
    assert ran.code == 130
    assert ran.err.splitlines()[-1] == "interrupted before the first step; nothing was written"
    assert not Path("out").exists()


def test_ctrl_c_while_a_run_is_prepared_that_goes_on_keeps_its_checkpoint(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("idefics_cli.cli.commands.tune.run._finish", interrupt)
        assert tune(*SHORT).code == 130
    ran = tune(*SHORT)
    assert ran.code == 0
    assert "going on after 2 of 2 steps" in ran.err


@pytest.mark.usefixtures("data")
def test_a_folder_without_weights_says_that_its_training_has_not_ended() -> None:
    Path("out").mkdir()
    Path("out/idefics.json").write_text('{"run": {}, "finished": false}')
    Path("out/training.jsonl").touch()
    for words in (("--adapter", "out"), ("-m", "./out")):
        ran = run("ask", "What is it?", *words, services=Services(stdin=None))
        assert ran.code == 1
        assert ran.err.splitlines() == [
            f"error: the training of `{words[1]}` has not ended, and has written no weights yet",
            "hint: the same `idefics tune` goes on",
        ]


# Sends a signal to itself as soon as a step is in the log.
INTERRUPTED = """
import os
from idefics_cli.cli.app import main
from idefics_cli.training.tuning.output import OutputFolder

append = OutputFolder.append

def interrupt(folder, line):
    append(folder, line)
    if "norm" in line and line["step"] == {step}:
        os.kill(os.getpid(), {number})

OutputFolder.append = interrupt
main()
"""


def interrupted(
    words: tuple[str, ...], number: signal.Signals, step: int, warm_python: tuple[str, ...]
) -> str:
    """Run `tune`, which gets a signal right after *step*; return what it wrote to stderr."""
    program = INTERRUPTED.format(step=step, number=int(number))
    done = subprocess.run(
        [*warm_python, "-c", program, "tune", *words, "-m", "demo"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (130 if number == signal.SIGINT else -number), done.stderr
    assert Path("out/adapter_model.safetensors").exists()
    return done.stderr


def test_after_signals_the_same_command_goes_on(here: Path, warm_python: tuple[str, ...]) -> None:
    # Short answers, because each evaluation asks for one.
    write_style(here / "photos", lambda caption: caption.split()[1], count=3)
    words = ("photos", "-o", "out", "--replay", "0", "--epochs", "6", "--batch-size", "1")
    adapters = []
    for is_stopped in (False, True):
        if is_stopped:
            # Steps that are evaluated are in a checkpoint, but 3 and 9 are not evaluated. Ctrl-C
            # writes one; SIGKILL does not, and 8 is the last one before it.
            err = interrupted(words, signal.SIGINT, 3, warm_python)
            assert "finishing the step; Ctrl-C again stops at once\n" in err
            assert "the same command continues from here" in err
            err = interrupted(words, signal.SIGKILL, 9, warm_python)
            assert "going on after 3 of 12 steps" in err
        rest = tune(*words)
        assert rest.code == 0
        assert ("going on after 8 of 12 steps" in rest.err) == is_stopped
        lines = [json.loads(line) for line in Path("out/training.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "norm" in line] == list(range(1, 13))
        adapters.append(Path("out/adapter_model.safetensors").read_bytes())
        shutil.rmtree("out")
    assert adapters[0] == adapters[1]


def test_a_dry_run_counts_the_rows_with_own_answers_as_the_run_does(
    replayed: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(replayed.folder)
    ran = tune(*replayed.words, "--dry-run")
    assert (
        "5 to learn, 10 answers of the model to other questions, 1 to try the model on" in ran.out
    )
    planned = json.loads(tune(*replayed.words, "--dry-run", "--json").out)
    result = replayed.result
    for name in ("rows", "replayed_rows", "validation_rows", "steps"):
        assert planned[name] == result[name]
    # The result counts the tokens of the data, without those of the own answers.
    assert planned["tokens"] > 2 * result["tokens"]


def test_own_answers_to_other_questions_are_learned_too(replayed: Finished) -> None:
    ran = replayed.ran
    assert ran.code == 0
    assert (
        "10 answers of the model to other questions are learned too, to keep its skills" in ran.err
    )
    answers = json.loads((replayed.folder / "out" / "replay.json").read_text())
    assert len(answers) == 10
    result = replayed.result
    assert (result["rows"], result["replayed_rows"], result["steps"]) == (5, 10, 5)
    assert result["other_questions"]["asked"] == 1


def test_a_whole_run_needs_no_network(data: Path, warm_python: tuple[str, ...]) -> None:
    # Outside of the process of the tests, which has sockets of its own.
    program = """
import json, os, sys

def refuse(event, _):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        os.write(2, b"a socket")
        raise OSError("no network")

sys.addaudithook(refuse)
from idefics_cli.cli.app import make_app

for words in json.loads(sys.argv[1]):
    try:
        make_app()(words)
    except SystemExit as end:
        if end.code:
            raise
"""
    commands = [
        ("tune", *SHORT, "-m", "demo"),
        ("caption", "photos", "--adapter", "out", "-o", "new.jsonl"),
    ]
    done = subprocess.run(
        [*warm_python, "-c", program, json.dumps(commands)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr.count("a socket")) == (0, 0), done.stderr
    assert len(captions_in("new.jsonl")) == 6


@pytest.mark.parametrize(
    "words",
    [
        ("--quantization", "4bit", "--replay", "1"),
        ("--train", "text,connector,vision", "--no-keep-features"),
        ("--dora", "--checkpointing", "--dtype", "bfloat16"),
    ],
)
def test_other_ways_to_train_lower_the_loss(words: tuple[str, ...], data: Path) -> None:
    ran = tune(*QUICK, "--epochs", "1", *words, "--json")
    assert ran.code == 0
    first, *_, last = json.loads(ran.out)["evaluations"]
    assert last["loss"] < first["loss"] / 2


@pytest.mark.slow
def test_the_defaults_teach_a_new_style_to_the_built_in_model(here: Path) -> None:
    write_style(here / "photos", hard_style, count=128)
    write_style(here / "new", hard_style, count=32, seed=1)
    ran = tune("photos", "-o", "out", "--validation", "new", "--json")
    first, *_, last = json.loads(ran.out)["evaluations"]
    assert (first["exact"], last["exact"], last["asked"]) == (0, 32, 32)
    assert json.loads(ran.out)["other_questions"]["unchanged"] >= 20


def test_missing_data_is_an_error_before_torch_is_imported() -> None:
    code = (
        "import sys; from idefics_cli.cli.app import make_app\n"
        "try: make_app()(['tune', 'nosuch', '-o', 'adapter'])\n"
        "finally: assert 'torch' not in sys.modules"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (1, "error: no such file or folder: `nosuch`\n")
