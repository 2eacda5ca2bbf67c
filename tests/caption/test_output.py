"""`idefics caption`: formats, existing captions, wording and the gallery, with a fake model."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from idefics_cli.core.errors import ImageError
from idefics_cli.core.types import GenerationRequest
from tests.support.commands import World, run
from tests.support.fakes import FakeEngine

needs_pyarrow = pytest.mark.skipif(
    importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed"
)
BAD = ImageError("cannot read `photos/b.jpg`: it is cut off", kind="truncated")
CAPTION = "a picture named {}"


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files that the fake model takes for pictures; it fails on one of them."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "loop.csv").symlink_to("loop.csv")
    folder = tmp_path / "here" / "photos"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg", "sub/c.png"):
        (folder / name).write_text(name)
    monkeypatch.chdir(tmp_path / "here")
    return folder


def name(request: GenerationRequest) -> str:
    return CAPTION.format(Path(request.attachments[0].source).stem)


def caption(*arguments: str, world: World | None = None) -> Any:
    world = world or World(FakeEngine(name, image_errors={"photos/b.jpg": BAD}))
    return run("caption", "photos", "-r", *arguments, services=world.services)


def rows(path: str) -> list[tuple[str, str | None]]:
    """Return the names and captions in *path*, whose extension gives the format."""
    if path.endswith(".jsonl"):
        lines = map(json.loads, Path(path).read_text("utf-8").splitlines())
        return [(row["file_name"], row["caption"]) for row in lines]
    if path.endswith(".csv"):
        with open(path, encoding="utf-8-sig", newline="") as file:
            return [(row["file_name"], row["caption"] or None) for row in csv.DictReader(file)]
    from pyarrow import parquet

    table = parquet.read_table(path, columns=["file_name", "caption"]).to_pylist()
    return [(row["file_name"], row["caption"]) for row in table]


EXPECTED = [
    ("photos/a.jpg", "a picture named a"),
    ("photos/b.jpg", None),
    ("photos/sub/c.png", "a picture named c"),
]


# Formats


@pytest.mark.parametrize(
    "path", ["out.jsonl", "out.csv", pytest.param("out.parquet", marks=needs_pyarrow)]
)
def test_the_extension_says_the_format(path: str) -> None:
    assert caption("-o", path).code == 3
    assert rows(path) == EXPECTED


def test_a_format_beside_the_extension_is_told() -> None:
    ran = caption("-o", "out.csv", "-f", "jsonl")

    assert "warning: `out.csv` will hold jsonl, as `--format` says\n" in ran.err
    assert Path("out.csv").read_text("utf-8").startswith('{"file_name"')
    assert "warning" not in caption("-o", "out.ndjson", "-f", "jsonl").err


def test_a_csv_for_excel_begins_with_one_mark_and_is_read_back() -> None:
    command = ("-o", "out.csv", "-f", "csvbom")
    ran = caption(*command)
    whole = Path("out.csv").read_bytes()
    assert "warning" not in ran.err
    assert whole.startswith(b"\xef\xbb\xbffile_name,caption,")
    assert whole.decode().count("\ufeff") == 1
    assert rows("out.csv") == EXPECTED

    for written_as in (command, ("-o", "out.csv")):  # a file that another run has begun
        for left in Path().glob("out.csv.*"):
            left.unlink()
        ran = caption(*written_as, "--existing", "skip")
        assert (ran.code, Path("out.csv").read_bytes()) == (1, whole + whole.splitlines(True)[2])
        Path("out.csv").write_bytes(whole)


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["-o", "x.json"], "no format for `x.json`", "`-o captions.jsonl` has one JSON object"),
        (
            ["-o", "out.md"],
            "no format for `out.md`: `-o` knows .tsv, .txt, .jsonl, .ndjson, .csv and .parquet\n",
            "`--format` says what the file will hold",
        ),
        (
            ["-o", "x.tar"],
            "no format for `x.tar`: `-o` knows",
            "`-f webdataset -o FOLDER` writes an archive",
        ),
        (["-o", "x.tsv.gz"], "no format for `x.tsv.gz`: `-o` knows", "`--format`"),
        (
            ["-o", "x.caption"],
            "no format for `x.caption`: `-o` knows",
            "`-f txt --text-extension .caption`",
        ),
        (["-f", "parquet"], "parquet needs a file", "`-o captions.parquet`"),
        (["-f", "txt", "-o", "-"], "`--format txt` writes a file for each picture", None),
        (["-o", "photos"], "cannot write `photos`: it is a folder", "`-f txt` for one file"),
        (
            ["--overwrite", "--existing", "skip"],
            "--overwrite and --existing skip exclude each other",
            None,
        ),
        (
            ["-o", "x.jsonl", "--existing", "prepend"],
            "`--existing prepend` is for files of one caption",
            "`-f txt`",
        ),
        (["--report", "-"], "the report needs a file", "`--report gallery.html`"),
        (["--report", "photos"], "cannot write `photos`: it is a folder", None),
        (["-o", "x.tsv", "--report", "./x.tsv"], "`x.tsv` cannot be both", None),
        (["-o", "x.tsv", "--failures", "./x.tsv"], "`x.tsv` cannot be both the output", None),
        (["--report", "x.html", "--failures", "x.html"], "`x.html` cannot be both the re", None),
        *(
            ([option, name + end], f"cannot write `{name}{end}`: File name too long", None)
            for option, end in (("-o", ".csv"), ("--report", ".html"), ("--failures", ".txt"))
            for name in ("n" * 300, "n" * 240)
        ),
        (["-o", "loop.csv"], "cannot write `loop.csv`: Too many levels of symbolic links", None),
        (["--failures", "photos"], "cannot write `photos`: ", None),
        (["--failures", "/dev/null"], "cannot write `/dev/null`: Not a regular file", None),
    ],
)
def test_what_makes_no_sense_is_told_before_a_model_is_loaded(
    arguments: list[str], message: str, hint: str | None
) -> None:
    world = World(FakeEngine(name))
    ran = caption(*arguments, world=world)

    assert (ran.code, ran.out, world.specs) == (2, "", [])
    assert ran.err.startswith(f"error: {message}")
    assert (hint or "") in ran.err


def test_a_flag_is_stronger_than_a_variable_of_the_other_name() -> None:
    Path("out.jsonl").write_text("mine")
    world = World(FakeEngine(name), IDEFICS_EXISTING="error")
    assert caption("-o", "out.jsonl", "--overwrite", world=world).code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["-o", "out"],
        ["-o", "x.tsv"],
        ["-o", "x.TXT"],
        ["-o", ".hidden"],
        ["-f", "tsv", "-o", "x.md"],
    ],
)
def test_a_file_with_a_known_extension_or_none_has_lines(arguments: list[str]) -> None:
    ran = caption(*arguments, world=World(FakeEngine(name)))
    assert ran.code == 0
    assert Path(arguments[-1]).read_text().splitlines()[0] == "photos/a.jpg\ta picture named a"


@pytest.mark.parametrize("in_file", [True, False])
def test_overwrite_that_is_stored_is_an_error_before_anything_is_overwritten(in_file: bool) -> None:
    Path("out.csv").write_text("mine")
    Path("config.toml").write_text("overwrite = true\n")
    stored = {"IDEFICS_CONFIG": "config.toml"} if in_file else {"IDEFICS_OVERWRITE": "1"}
    ran = caption("-o", "out.csv", world=World(FakeEngine(name), environ=stored))

    assert (ran.code, ran.out, Path("out.csv").read_text()) == (2, "", "mine")
    assert "`overwrite`" in ran.err
    assert "`--overwrite`" in ran.err


# Sidecars


def texts(folder: Path) -> dict[str, str]:
    found = sorted(folder.rglob("*.txt"))
    return {
        path.relative_to(folder).as_posix(): path.read_text("utf-8")
        for path in found
        if "failures" not in path.name
    }


def test_text_files_lie_beside_the_pictures(photos: Path) -> None:
    expected = {"a.txt": "a picture named a\n", "sub/c.txt": "a picture named c\n"}

    assert caption("-f", "txt").code == 3
    assert texts(photos) == expected


def test_text_files_in_a_folder_keep_the_tree() -> None:
    assert caption("-f", "txt", "-o", "texts").code == 3
    expected = {"a.txt": "a picture named a\n", "sub/c.txt": "a picture named c\n"}
    assert texts(Path("texts")) == expected


@pytest.mark.parametrize("extension", [".caption", "caption"])
def test_text_files_have_the_extension_that_is_given(photos: Path, extension: str) -> None:
    command = ("-f", "txt", "--text-extension", extension)
    assert caption(*command).code == 3
    found = {path.name: path.read_text("utf-8") for path in photos.rglob("*.caption")}
    assert found == {"a.caption": "a picture named a\n", "c.caption": "a picture named c\n"}
    assert caption(*command, "--full-names", "--overwrite").code == 3
    assert (photos / "a.jpg.caption").read_text("utf-8") == "a picture named a\n"

    engine = FakeEngine(name)
    prompt = ("-p", "<{existing}>", "--text-extension", ".caption")
    world = World(engine)
    assert run("caption", "photos/a.jpg", *prompt, services=world.services).code == 0
    assert engine.requests[0].messages[0].text == "<a picture named a>"


def test_another_extension_of_text_files_is_another_run(photos: Path) -> None:
    assert caption("-f", "txt").code == 3
    ran = caption("-f", "txt", "--text-extension", ".caption")
    assert ran.code == 2
    assert "text extension: not given, now `.caption`" in ran.err
    assert caption("-f", "txt", "--text-extension", ".txt").code == 3
    assert not list(photos.rglob("*.caption"))


@pytest.mark.parametrize(
    ("format_", "short", "full"),
    [("txt", "a.txt", "a.jpg.txt"), ("xmp", "a.xmp", "a.jpg.xmp")],
)
@pytest.mark.parametrize("is_full_first", [False, True])
def test_other_names_of_sidecars_are_another_run(
    is_full_first: bool, format_: str, short: str, full: str, photos: Path
) -> None:
    default = format_ == "xmp"

    def run_named(is_full: bool, *options: str) -> Any:
        given = () if is_full == default else ("--full-names" if is_full else "--no-full-names",)
        return caption("-f", format_, *given, *options)

    assert run_named(is_full_first).code == 3
    ran = run_named(not is_full_first)
    told = "on, now off" if is_full_first else "off, now on"
    assert (ran.code, f"had other settings: full names: {told}\n" in ran.err) == (2, True)
    assert (photos / short).exists() != is_full_first
    assert (photos / full).exists() == is_full_first
    same = "--full-names" if is_full_first else "--no-full-names"
    ran = caption("-f", format_, same)
    assert (ran.code, "continuing the run: 2 of 3" in ran.err) == (3, True)

    assert run_named(not is_full_first, "--existing", "skip").code == 3
    assert (photos / short).exists()
    assert (photos / full).exists()


def test_names_of_sidecars_are_no_setting_of_other_formats(photos: Path) -> None:
    assert caption("-o", "out.csv").code == 3
    assert "continuing the run" in caption("-o", "out.csv", "--full-names").err


@pytest.mark.parametrize(
    ("extension", "message"),
    [
        (".png", "text files cannot have the extension of pictures, `.png`"),
        ("JPG", "text files cannot have the extension of pictures, `.JPG`"),
        ("", "`` is not an extension"),
        ("a/b", "`a/b` is not an extension"),
        (".tar.gz", "`.tar.gz` is not an extension"),
    ],
)
def test_an_extension_that_makes_no_sense_is_refused(
    extension: str, message: str, photos: Path
) -> None:
    before = sorted(photos.rglob("*"))
    ran = caption("-f", "txt", "--text-extension", extension, "--overwrite")
    assert (ran.code, sorted(photos.rglob("*"))) == (2, before)
    assert ran.err.startswith(f"error: {message}")


def test_two_pictures_with_one_stem_are_refused_before_the_model_or_have_full_names(
    photos: Path,
) -> None:
    (photos / "a.png").write_text("a.png")
    world = World(FakeEngine(name))
    ran = caption("-f", "txt", world=world)

    assert (ran.code, world.specs) == (2, [])
    assert "`--full-names` makes it `a.png.txt`" in ran.err
    assert caption("-f", "txt", "--full-names", world=world).code == 0
    assert list(texts(photos)) == ["a.jpg.txt", "a.png.txt", "b.jpg.txt", "sub/c.png.txt"]


def test_captions_by_hand_are_kept_joined_or_replaced(photos: Path) -> None:
    (photos / "a.txt").write_text("by hand")
    ran = caption("-f", "txt")
    assert ran.code == 2
    assert ran.err.startswith("error: `photos/a.txt` exists already\n")

    assert caption("-f", "txt", "--existing", "append").code == 3
    assert texts(photos)["a.txt"] == "by hand a picture named a\n"
    assert caption("-f", "txt", "--existing", "append").code == 3
    assert texts(photos)["a.txt"] == "by hand a picture named a\n"


def test_pictures_with_a_caption_are_skipped_when_asked_for(photos: Path) -> None:
    (photos / "a.txt").write_text("by hand")
    engine = FakeEngine(name)
    assert caption("-f", "txt", "--existing", "skip", world=World(engine)).code == 0

    assert texts(photos)["a.txt"] == "by hand"
    assert list(texts(photos)) == ["a.txt", "b.txt", "sub/c.txt"]


# Wording


def test_words_are_added_in_every_format(photos: Path) -> None:
    added = ("--prefix", "<", "--suffix", ">", "--trigger", "ohwx")
    words = "ohwx, <a picture named a>"

    assert caption("-q", *added).out.startswith(f"photos/a.jpg\t{words}\n")
    caption("-o", "out.jsonl", *added)
    assert rows("out.jsonl")[0] == ("photos/a.jpg", words)
    caption("-f", "txt", *added)
    assert texts(photos)["a.txt"] == f"{words}\n"


def test_a_preamble_is_left_out_when_asked_for() -> None:
    world = World(FakeEngine(lambda request: "The image shows a cat."))
    assert caption("photos/a.jpg", "-q", "--strip-preamble", world=world).out.startswith(
        "photos/a.jpg\tA cat.\n"
    )


# Parquet


@needs_pyarrow
def test_a_parquet_file_is_gone_on_with(photos: Path) -> None:
    caption("-o", "out.parquet")
    (photos / "0.jpg").write_text("new")
    caption("-o", "out.parquet")

    assert rows("out.parquet") == [("photos/0.jpg", "a picture named 0"), *EXPECTED]
    assert not list(Path().glob("out.parquet.rows*"))


@needs_pyarrow
def test_rows_that_a_parquet_file_had_before_stay(photos: Path) -> None:
    caption("-o", "out.parquet")
    for path in Path().glob("out.parquet.*"):
        path.unlink()
    for added in ("1.jpg", "2.jpg"):
        (photos / added).write_text("new")
        caption("-o", "out.parquet", "--existing", "append")

    names = [name for name, _ in rows("out.parquet")]
    first = [name for name, _ in EXPECTED]
    assert names == [*first, "photos/1.jpg", "photos/2.jpg", *first]


# The gallery


def shown(path: str = "gallery.html") -> list[tuple[str, str | None]]:
    text = Path(path).read_text("utf-8")
    found = text.partition('<script class="rows" type="application/json">')[2]
    listed = json.loads(found.partition("</script>")[0])
    return [(row["file_name"], row.get("caption")) for row in listed]


@pytest.mark.parametrize("output", [[], ["-o", "out.jsonl"], ["-f", "txt"]])
def test_the_page_has_every_row_of_any_format(output: list[str]) -> None:
    ran = caption(*output, "--report", "gallery.html")

    assert ran.code == 3
    assert ran.err.endswith("note: `gallery.html` shows 3 pictures\n")
    assert shown() == EXPECTED


def test_the_page_of_a_resumed_run_has_the_former_rows_too(photos: Path) -> None:
    (photos / "z.jpg").write_text("new")
    caption("-o", "out.jsonl", "--report", "gallery.html", "--fail-fast")
    assert len(shown()) < 4

    caption("-o", "out.jsonl", "--report", "gallery.html")
    assert shown() == [*EXPECTED, ("photos/z.jpg", "a picture named z")]
    Path("gallery.html").unlink()
    ran = caption("-o", "out.jsonl", "--report", "gallery.html")
    assert "nothing is left to caption" in ran.err
    assert len(shown()) == 4


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        (("--fail-fast",), "stopped at the first failure"),
        (("--max-failures", "1"), "stopped, because more than 1 picture failed"),
    ],
)
def test_a_run_that_ends_early_says_why(photos: Path, limit: tuple[str, ...], told: str) -> None:
    for picture in ("d.jpg", "e.jpg"):
        (photos / picture).write_text(picture)
    errors = {f"photos/{picture}.jpg": BAD for picture in "bd"}
    world = World(FakeEngine(name, image_errors=errors))
    ran = caption("-o", "out.jsonl", "--batch-size", "1", *limit, world=world)

    assert ran.code == 3
    assert f"note: {told}\nnote: the same command continues from here\n" in ran.err


def test_a_run_whose_last_picture_is_one_failure_too_many_is_done(photos: Path) -> None:
    (photos / "sub" / "c.png").unlink()
    ran = caption("-o", "out.jsonl", "--max-failures", "0")

    assert ran.code == 3
    summary, note = ran.err.splitlines()[-2:]
    assert summary.startswith("captioned 1 of 2")
    assert note == "note: `out.jsonl.failures.txt` lists what failed"


def test_a_page_of_somebody_else_is_kept_and_told_before_the_model_is_loaded() -> None:
    Path("gallery.html").write_text("mine")
    world = World(FakeEngine(name))
    ran = caption("--report", "gallery.html", world=world)

    assert (ran.code, world.specs) == (2, [])
    assert ran.err.startswith("error: `gallery.html` exists already, and is not a report\n")
    assert Path("gallery.html").read_text() == "mine"
