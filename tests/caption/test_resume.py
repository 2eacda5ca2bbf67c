"""The same command again captions every picture once, however the run before ended."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from idefics_cli.caption.resume.journal import RunJournal
from idefics_cli.core.errors import ImageError, ModelError
from idefics_cli.core.types import CaptionRecord, GenerationRequest
from tests.support.commands import Ran, World, run
from tests.support.fakes import FakeEngine
from tests.support.outputs import FORMATS, OF_FILES, contents, destination

NAMES = tuple(f"{number:02}.jpg" for number in range(12))
BAD = ImageError("cannot read `photos/03.jpg`: it is cut off", kind="truncated")

every_format = pytest.mark.parametrize("format_", FORMATS)
# The formats with one file that can be cut.
every_file = pytest.mark.parametrize("format_", sorted(OF_FILES - {"txt", "xmp", "parquet"}))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in NAMES:
        (tmp_path / "photos" / name).write_text(name, "utf-8")
    return tmp_path


def describe(request: GenerationRequest) -> str:
    return f"a picture named {Path(request.attachments[0].source).stem}"


class Ending(FakeEngine):
    """Ends the run after *count* pictures, like a second Ctrl-C."""

    def __init__(self, count: int) -> None:
        super().__init__(self._answer)
        self._left = count

    def _answer(self, request: GenerationRequest) -> str:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt
        return describe(request)


def caption(
    *arguments: str, engine: FakeEngine | None = None, paths: Sequence[str] = ("photos",)
) -> Ran:
    world = World(engine or FakeEngine(describe))
    return run("caption", *paths, "--batch-size", "2", *arguments, services=world.services)


def whole(format_: str, *arguments: str) -> dict[str, str]:
    """Return the outputs of a run that nothing interrupts."""
    Path("whole").mkdir()
    ran = caption("-f", format_, "-o", destination("whole", format_), *arguments)
    assert ran.code == 0
    return contents(Path("whole"))


@every_format
@pytest.mark.parametrize("count", [0, 1, 5, 11])
def test_a_run_that_was_interrupted_goes_on_to_the_output_of_one_that_was_not(
    format_: str, count: int
) -> None:
    Path("parts").mkdir()
    arguments = ("-f", format_, "-o", destination("parts", format_))
    first = caption(*arguments, engine=Ending(count))
    assert first.code == 130

    engine = FakeEngine(describe)
    assert caption(*arguments, engine=engine).code == 0
    assert contents(Path("parts")) == whole(format_)
    assert len(engine.requests) == len(NAMES) - count // 2 * 2


@every_format
def test_the_same_command_again_does_nothing_and_changes_nothing(format_: str) -> None:
    Path("out").mkdir()
    arguments = ("-f", format_, "-o", destination("out", format_))
    caption(*arguments)
    before = contents(Path("out"))
    engine = FakeEngine(describe)
    ran = caption(*arguments, engine=engine)

    assert (ran.code, engine.requests, contents(Path("out"))) == (0, [], before)
    assert ran.err == (
        "note: continuing the run: 12 of 12 are captioned\nnothing is left to caption\n"
    )


@every_file
@pytest.mark.parametrize("torn", [1, 20, 1000])
def test_what_a_sudden_end_tore_is_cut_off_and_done_again(format_: str, torn: int) -> None:
    Path("parts").mkdir()
    arguments = ("-f", format_, "-o", "parts/out")
    caption(*arguments, engine=Ending(6))
    output, journal = Path("parts/out"), Path("parts/out.journal")
    # A torn row, whose line in the journal is missing or torn.
    with output.open("ab") as file:
        file.write(b'{"file_name": "photos/06' * 40)
    lines = journal.read_bytes().splitlines(keepends=True)
    records = b"".join(line for line in lines if b'"closed"' not in line)
    journal.write_bytes(records + b'{"key": "photos/06.jpg", "rec'[:torn])

    assert caption(*arguments).code == 0
    assert contents(Path("parts")) == whole(format_)


@every_file
@pytest.mark.parametrize("left", [0, 1, 100])
def test_rows_that_a_loss_of_power_took_come_back_from_the_journal(format_: str, left: int) -> None:
    Path("parts").mkdir()
    arguments = ("-f", format_, "-o", "parts/out")
    caption(*arguments, engine=Ending(6))
    journal = Path("parts/out.journal")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(line for line in lines if b'"closed"' not in line))
    os.truncate("parts/out", left)

    engine = FakeEngine(describe)
    assert caption(*arguments, engine=engine).code == 0
    assert contents(Path("parts")) == whole(format_)
    assert len(engine.requests) == 6


@every_file
def test_an_output_that_is_gone_comes_back_from_the_journal(format_: str) -> None:
    Path("parts").mkdir()
    arguments = ("-f", format_, "-o", "parts/out")
    caption(*arguments)
    Path("parts/out").unlink()
    engine = FakeEngine(describe)

    assert caption(*arguments, engine=engine).code == 0
    assert contents(Path("parts")) == whole(format_)
    assert engine.requests == []


@every_file
def test_an_output_that_somebody_edited_is_left_alone(format_: str) -> None:
    caption("-f", format_, "-o", "out")
    edited = Path("out").read_text("utf-8").replace("named 07", "of a cat")
    Path("out").write_text(edited, "utf-8")
    ran = caption("-f", format_, "-o", "out", paths=("photos", "photos/more.jpg"))

    assert (ran.code, Path("out").read_text("utf-8")) == (2, edited)
    assert ran.err == (
        "error: `out` was changed by something else since the last run\n"
        "hint: name another output, or let `--overwrite` without `--retry-failed` begin anew\n"
    )


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (("-p", "What?"), "prompt: `Describe this image.`, now `What?`"),
        (
            ("--temperature", "0.5", "--seed", "3"),
            "temperature: 0.0, now 0.5; seed: not given, now 3",
        ),
        (("-f", "csv"), "format: `jsonl`, now `csv`"),
        (("--splitting",), "splitting: not given, now on"),
        (("--trigger", "ohwx"), "trigger: none, now `ohwx`"),
        (("--ban", "red", "--ban", "a cat"), "banned: not given, now `red`, `a cat`"),
        (("--background", "black"), "background: not given, now `#000000`"),
    ],
)
def test_other_settings_are_refused_with_what_changed_and_what_could_be_done(
    changed: tuple[str, ...], told: str
) -> None:
    caption("-o", "out.jsonl", engine=Ending(4))
    before = contents(Path())
    engine = FakeEngine(describe)
    ran = caption("-o", "out.jsonl", *changed, engine=engine)

    assert (ran.code, engine.requests, contents(Path())) == (2, [], before)
    *_, error, hint = ran.err.splitlines()
    assert error == f"error: the run in `out.jsonl.journal` had other settings: {told}"
    assert hint == (
        "hint: the former settings continue it; another `-o` begins a new run; "
        "`--overwrite` begins anew, without its 4 captions"
    )
    assert caption("-o", "out.jsonl", *changed, "--overwrite").code == 0
    assert "continuing the run: 12 of 12" in caption("-o", "out.jsonl", *changed).err


def test_what_makes_a_run_faster_only_is_no_other_run() -> None:
    caption("-o", "out.jsonl", engine=Ending(4))
    ran = caption("-o", "out.jsonl", "--threads", "2", "--batch-size", "5")

    assert ran.code == 0


def test_a_model_that_moved_on_is_refused_and_its_former_commit_goes_on() -> None:
    old, new = "a" * 40, "b" * 40
    begun = Ending(4)
    begun.revision = old
    caption("-o", "out.jsonl", engine=begun)
    before = contents(Path())
    moved = FakeEngine(describe, revision=new)
    ran = caption("-o", "out.jsonl", engine=moved)

    assert (ran.code, moved.requests, contents(Path())) == (2, [], before)
    assert ran.err.splitlines()[-2:] == [
        f"error: the run in `out.jsonl.journal` began with commit {old[:12]} of the model, "
        f"which is at {new[:12]} now",
        f"hint: `--revision {old}` continues it; another `-o` begins a new run",
    ]
    engine = FakeEngine(describe, revision=old)
    assert caption("-o", "out.jsonl", "--revision", old, engine=engine).code == 0
    assert len(engine.requests) == 8
    ran = caption("-o", "out.jsonl", "--revision", new)
    assert (ran.code, f"revision: not given, now `{new}`" in ran.err) == (2, True)


def test_overwrite_goes_on_with_its_own_unfinished_run_and_replaces_a_finished_one() -> None:
    Path("out.jsonl").write_text("mine", "utf-8")
    for count, code in ((4, 130), (100, 0), (100, 0)):
        engine = Ending(count)
        ran = caption("-o", "out.jsonl", "--overwrite", engine=engine)
        assert ran.code == code
        rows = Path("out.jsonl").read_text("utf-8").splitlines()
        assert len(rows) == (4 if code else 12)
    assert len(engine.requests) == 12


@every_format
def test_a_picture_that_changed_is_captioned_again_and_its_row_replaced(format_: str) -> None:
    Path("out").mkdir()
    arguments = ("-f", format_, "-o", destination("out", format_))
    caption(*arguments)
    Path("photos/04.jpg").write_text("another picture", "utf-8")
    os.utime("photos/05.jpg", (1, 1))  # another time, but the same content
    engine = FakeEngine("another caption")
    ran = caption(*arguments, engine=engine)

    assert [r.attachments[0].source for r in engine.requests] == ["photos/04.jpg"]
    assert ran.err.startswith("note: continuing the run: 11 of 12 are captioned, 1 changed since\n")
    now = "".join(contents(Path("out")).values())
    assert now.count("another caption") == 1
    assert now.count("a picture named") == 11
    assert "named 04" not in now


def test_a_row_of_a_list_that_changed_is_asked_about_again() -> None:
    def run_list(*subjects: str) -> tuple[Ran, list[str]]:
        rows = (f"{number:02}.jpg,{subject}" for number, subject in enumerate(subjects))
        Path("photos/list.csv").write_text("\n".join(("file_name,subject", *rows)), "utf-8")
        engine = FakeEngine(lambda request: request.messages[0].text)
        prompt = ("--prompt", "Where is {subject}?")
        ran = caption(
            "--filelist", "photos/list.csv", "-o", "out.jsonl", *prompt, engine=engine, paths=()
        )
        return ran, [request.messages[0].text for request in engine.requests]

    run_list("the dog", "the cat", "Tom")
    assert run_list("the dog", "the cat", "Tom")[1] == []
    ran, asked = run_list("the dog", "the mouse", "Tom")
    assert asked == ["Where is the mouse?"]
    assert "1 changed since" in ran.err
    lines = Path("out.jsonl").read_text("utf-8").splitlines()
    captions = [json.loads(line)["caption"] for line in lines]
    assert captions == ["Where is the dog?", "Where is the mouse?", "Where is Tom?"]


@every_file
def test_at_no_moment_has_a_picture_that_changed_two_rows(format_: str) -> None:
    caption("-f", format_, "-o", "out")
    Path("photos/04.jpg").write_text("another picture", "utf-8")
    assert caption("-f", format_, "-o", "out", engine=Ending(0)).code == 130

    now = Path("out").read_text("utf-8")
    assert (now.count("a picture named"), "named 04" in now) == (11, False)


@every_format
def test_only_failures_are_tried_again_when_asked_for(format_: str) -> None:
    Path("out").mkdir()
    arguments = ("-f", format_, "-o", destination("out", format_))
    ran = caption(*arguments, engine=FakeEngine(describe, image_errors={"photos/03.jpg": BAD}))
    assert ran.code == 3
    again = caption(*arguments, engine=FakeEngine(describe))
    assert (again.code, "1 failed before (`--retry-failed`" in again.err) == (3, True)

    engine = FakeEngine(describe)
    assert caption(*arguments, "--retry-failed", engine=engine).code == 0
    assert [r.attachments[0].source for r in engine.requests] == ["photos/03.jpg"]
    assert contents(Path("out")) == whole(format_)
    assert caption(*arguments).code == 0


def test_failures_are_listed_in_a_file_until_there_are_none() -> None:
    bad = {f"photos/{n}": BAD for n in ("03.jpg", "07.jpg")}
    ran = caption("-o", "out.jsonl", engine=FakeEngine(describe, image_errors=bad))

    assert ran.err.splitlines()[-1] == "note: `out.jsonl.failures.txt` lists what failed"
    assert Path("out.jsonl.failures.txt").read_text("utf-8") == "photos/03.jpg\nphotos/07.jpg\n"
    caption("-o", "out.jsonl", "--retry-failed")
    assert not Path("out.jsonl.failures.txt").exists()

    caption("--failures", "mine", engine=FakeEngine(describe, image_errors=bad))
    assert Path("mine").read_text("utf-8") == "photos/03.jpg\nphotos/07.jpg\n"


@pytest.mark.parametrize("output", [(), ("-o", "out.jsonl")])
@pytest.mark.parametrize("failing", [True, False])
def test_a_file_that_is_no_list_of_failures_is_not_replaced(
    output: tuple[str, ...], failing: bool
) -> None:
    def answer(request: GenerationRequest) -> str:
        return describe(request)

    for content in (b"notes of mine\n", b"photos/03.jpg\nand a note\n", b"\xff\xd8\xff\xe0"):
        Path("notes.txt").write_bytes(content)
        errors = {"photos/03.jpg": BAD} if failing else {}
        engine = FakeEngine(answer, image_errors=errors)
        ran = caption("--failures", "notes.txt", *output, engine=engine)
        assert (ran.code, engine.requests) == (2, [])
        assert ran.err.startswith("error: `notes.txt` exists already, and is not a list")
        assert Path("notes.txt").read_bytes() == content
    Path("notes.txt").write_text("photos/03.jpg\nelsewhere/x.png\nhttps://example.com/a\n")
    engine = FakeEngine(answer, image_errors={"photos/03.jpg": BAD})
    assert caption("--failures", "notes.txt", *output, engine=engine).code == 3
    assert Path("notes.txt").read_text() == "photos/03.jpg\n"


def test_retrying_what_was_never_begun_is_wrong_usage() -> None:
    assert caption("-o", "out.jsonl", "--retry-failed").code == 2
    assert caption("--retry-failed").code == 2
    assert contents(Path()).keys() == {f"photos/{name}" for name in NAMES}


def test_new_pictures_are_added_in_their_place() -> None:
    caption("-o", "out.tsv", engine=FakeEngine(describe), paths=("photos/0*.jpg",))
    ran = caption("-o", "out.tsv")

    assert ran.code == 0
    assert Path("out.tsv").read_text("utf-8") == "".join(
        f"photos/{name}\ta picture named {name[:2]}\n" for name in NAMES
    )


def test_a_run_goes_on_from_another_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    caption("-o", "out.jsonl", engine=Ending(6))
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    engine = FakeEngine(describe)
    assert caption("-o", "../out.jsonl", paths=("../photos",), engine=engine).code == 0

    assert len(engine.requests) == 6
    rows = (here / "out.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(row)["file_name"] for row in rows] == [f"photos/{n}" for n in NAMES]


def test_a_second_run_into_one_output_is_refused() -> None:
    refused: list[Ran] = []

    class Intruded(FakeEngine):
        def close(self) -> None:
            refused.append(caption("-o", "out.jsonl"))
            super().close()

    assert caption("-o", "out.jsonl", engine=Intruded(describe)).code == 0
    assert refused == [
        Ran(
            2,
            "",
            "error: another run is writing this output: it holds `out.jsonl.journal`\n"
            "hint: wait until it is done, end it, or name another output\n",
        )
    ]
    assert len(Path("out.jsonl").read_text("utf-8").splitlines()) == len(NAMES)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_without_locks_a_run_captions_and_says_so(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    note = (
        "note: the file system of `out.jsonl.journal` has no locks: "
        "start no other run with this output\n"
    )
    first = caption("-o", "out.jsonl", engine=Ending(6))
    assert (first.code, note in first.err) == (130, True)
    second = caption("-o", "out.jsonl")
    assert (second.code, note in second.err) == (0, True)
    assert len(Path("out.jsonl").read_text("utf-8").splitlines()) == len(NAMES)


def test_a_lock_that_fails_leaves_no_empty_journal(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", refuse)
    ran = caption("-o", "out.jsonl")
    assert ran.code == 1
    assert ran.err.startswith("error: cannot keep the journal `out.jsonl.journal`: Input/output")
    assert sorted(path.name for path in here.iterdir()) == ["photos"]


def test_a_file_that_is_no_journal_is_left_alone() -> None:
    Path("out.jsonl.journal").write_text("my diary\n", "utf-8")
    ran = caption("-o", "out.jsonl")

    assert ran.code == 2
    assert ran.err.startswith("error: `out.jsonl.journal` is not the journal of a captioning run\n")
    assert Path("out.jsonl.journal").read_text("utf-8") == "my diary\n"


def test_the_header_tells_what_the_captions_were_made_with() -> None:
    caption("-o", "out.jsonl", "-p", "What?", engine=Ending(6))
    header = json.loads(Path("out.jsonl.run.json").read_text("utf-8"))
    assert header["end"] == "stopped"

    caption("-o", "out.jsonl", "-p", "What?")
    header = json.loads(Path("out.jsonl.run.json").read_text("utf-8"))
    assert header["model"] == "smolvlm-256m"
    assert header["commit"] == "0123abc"
    assert header["settings"]["prompt"] == "What?"
    assert {"idefics-cli", "torch", "transformers"} <= header["versions"].keys()
    assert header["pictures"] == {"listed": 12, "captioned": 12, "failed": 0, "skipped": 0}
    assert (header["end"], header["started"] <= header["ended"]) == ("done", True)


def test_a_hint_says_how_to_go_on() -> None:
    ran = caption("-o", "out.jsonl", engine=Ending(6))

    assert ran.err.splitlines()[-1] == "note: the same command continues from here"


@pytest.mark.parametrize("format_", FORMATS)
def test_a_model_that_could_not_be_loaded_leaves_nothing_that_refuses_another(
    format_: str, here: Path
) -> None:
    arguments = ("photos", "-f", format_, "-o", destination("out", format_))
    Path("out").mkdir()
    before = sorted(here.rglob("*"))
    world = World(FakeEngine(), load_error=ModelError("cannot be reached"))
    assert run("caption", *arguments, services=world.services).code == 1
    assert sorted(here.rglob("*")) == before

    other = World(FakeEngine(describe), model="smolvlm-2.2b")
    ran = run("caption", *arguments, "-m", "smolvlm-2.2b", services=other.services)
    assert (ran.code, "error" in ran.err) == (0, False)


def test_a_run_that_was_killed_before_its_first_caption_can_be_replaced() -> None:
    with RunJournal(Path("out.jsonl.journal")) as journal:
        journal.begin_run({"model": "another"})
    assert caption("-o", "out.jsonl", "--retry-failed").code == 2
    assert caption("-o", "out.jsonl").code == 0
    assert len(Path("out.jsonl").read_text("utf-8").splitlines()) == len(NAMES)


@pytest.mark.parametrize(
    "header",
    [
        {"journal": 1},
        {"journal": 1, "settings": 3, "base": 0, "skipped": []},
        {"journal": 1, "settings": {}, "base": "x", "skipped": []},
        {"journal": 1, "settings": {}, "base": 0, "skipped": 4},
        {"journal": 2, "settings": {}, "base": 0, "skipped": []},
    ],
)
def test_a_journal_with_another_first_line_is_refused_and_stays(header: dict[str, object]) -> None:
    journal = Path("out.jsonl.journal")
    journal.write_text(json.dumps(header) + "\n")
    ran = caption("-o", "out.jsonl")
    assert ran.code == 1
    assert ran.err.startswith("error: line 1 of the journal `out.jsonl.journal` is damaged;")
    assert json.loads(journal.read_text()) == header


def test_a_journal_of_another_version_is_refused_and_stays() -> None:
    journal = Path("out.jsonl.journal")
    journal.write_text('{"journal": 3, "settings": {}, "base": 0, "skipped": []}\n')
    ran = caption("-o", "out.jsonl")
    assert ran.code == 2
    assert ran.err.startswith(
        "error: `out.jsonl.journal` is from another version of this program (3)\n"
    )
    assert json.loads(journal.read_text())["journal"] == 3


def test_a_picture_that_is_captioned_again_moves_to_the_end_of_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "out.journal"
    with RunJournal(path) as journal:
        journal.begin_run({})
        for end, key in enumerate(("a", "b", "a"), 1):
            journal.add(key, CaptionRecord(key, caption="a cat"), end=end)
        assert list(journal.rows) == ["b", "a"]
    with RunJournal(path) as journal:
        assert list(journal.rows) == ["b", "a"]


def test_opening_a_journal_cuts_a_torn_line_off(tmp_path: Path) -> None:
    path = tmp_path / "out.journal"
    with RunJournal(path) as journal:
        journal.begin_run({})
    with path.open("ab") as file:
        file.write(b'{"key": "a", "rec')
    with RunJournal(path):
        pass
    assert path.read_bytes().endswith(b"}\n")


def test_without_an_output_file_the_failures_are_listed_in_the_named_file() -> None:
    def answer(request: GenerationRequest) -> str:
        if request.attachments[0].source == "photos/03.jpg":
            raise BAD
        return describe(request)

    ran = caption("--failures", "failed.txt", engine=FakeEngine(answer))
    assert ran.code == 3
    assert Path("failed.txt").read_text("utf-8") == "photos/03.jpg\n"
