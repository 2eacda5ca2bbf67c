"""The gallery of a run: one page that holds and shows all rows, and executes none of them."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import resource
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from PIL import Image

from idefics_cli.caption.gallery.report import check_report, write_report
from idefics_cli.core.errors import IdeficsError, UsageError
from idefics_cli.core.files import is_unfinished
from idefics_cli.core.types import CaptionRecord
from tests.support.browser import Browser, needs_browser, started

HOSTILE = (
    "</script><script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"
)


def record(key: str, caption: str = "A cat", **more: Any) -> CaptionRecord:
    return CaptionRecord(key, caption=caption, finish="stop", width=40, height=30, **more)


def failure(key: str, kind: str = "truncated") -> CaptionRecord:
    return CaptionRecord(key, error=f"cannot read `{key}`", error_kind=kind)


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    return tmp_path / "photos"


def draw(path: str, color: str = "red", size: tuple[int, int] = (400, 300)) -> str:
    Image.new("RGB", size, color).save(path)
    return path


class Page(HTMLParser):
    """The elements of a page in order, and the texts of its data blocks by class."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.blocks: dict[str, list[str]] = {"rows": [], "thumbs": [], "columns": [], "": []}
        self._open: str | None = None
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._open = (dict(attrs).get("class") or "") if tag == "script" else None
        if self._open is not None:
            self.blocks[self._open].append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = None

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self.blocks[self._open][-1] += data

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row for block in self.blocks["rows"] for row in json.loads(block)]

    @property
    def thumbnails(self) -> list[str]:
        return [line for block in self.blocks["thumbs"] for line in block.split("\n")]


def made(*records: CaptionRecord, **more: Any) -> Page:
    write_report(Path("gallery.html"), records, **more)
    return Page(Path("gallery.html"))


def test_every_record_is_a_row_with_its_thumbnail() -> None:
    keys = [draw(f"photos/{number}.png", size=(8, 6)) for number in range(450)]
    page = made(*map(record, keys))

    assert [row["file_name"] for row in page.rows] == keys
    assert page.rows[0] == {
        "file_name": "photos/0.png",
        "caption": "A cat",
        "status": "ok",
        "finish": "stop",
        "width": 40,
        "height": 30,
        "tokens": 0,
        "seconds": 0.0,
        "href": "photos/0.png",
    }
    assert len(page.thumbnails) == 450
    assert all(text.startswith("data:image/") for text in page.thumbnails)


def test_a_thumbnail_is_the_picture_as_it_is_seen(photos: Path) -> None:
    image = Image.new("RGB", (800, 200), "red")
    image.paste("blue", (400, 0, 800, 200))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees: the left side of the file is the top of the picture
    image.save(photos / "a.jpg", exif=exif)
    (text,) = made(record("photos/a.jpg")).thumbnails

    seen = Image.open(io.BytesIO(base64.b64decode(text.partition(",")[2]))).convert("RGB")
    assert seen.size == (56, 224)
    for y, color in ((40, (255, 0, 0)), (180, (0, 0, 255))):
        pixel = seen.getpixel((28, y))
        assert isinstance(pixel, tuple)
        assert all(abs(a - b) < 40 for a, b in zip(pixel, color, strict=True))


def test_what_cannot_be_shown_has_a_place_without_a_thumbnail(photos: Path) -> None:
    (photos / "text.jpg").write_text("no picture")
    records = [
        record("photos/gone.jpg"),
        record("photos/text.jpg"),
        failure("photos/broken.jpg"),
        record("https://example.org/a.jpg"),
        record("-"),
        failure(draw("photos/good.jpg"), kind="memory_limit"),
    ]
    page = made(*records)

    assert [text[:11] for text in page.thumbnails] == ["-"] * 5 + ["data:image/"]
    assert [row["href"] for row in page.rows][2:5] == [
        "photos/broken.jpg",
        "https://example.org/a.jpg",
        "",
    ]
    assert page.rows[2]["error"] == "cannot read `photos/broken.jpg`"


def test_answers_have_their_names() -> None:
    answered = replace(record("a.jpg"), answers=(("subject", "a cat"), ("mood", "calm")))
    page = made(answered, columns=("subject", "mood"))

    assert json.loads(page.blocks["columns"][0]) == ["subject", "mood"]
    assert (page.rows[0]["subject"], page.rows[0]["mood"]) == ("a cat", "calm")


@pytest.mark.parametrize("text", [HOSTILE, "<!--", "]]>", "</SCRIPT >", "\u2028 \udcff \x1b[2J"])
def test_nothing_in_a_name_or_caption_is_part_of_the_page(text: str) -> None:
    plain = made(record("a.jpg"), title="x")
    page = made(record(f"{text}.jpg", text, notes=(text,)), title=text)

    assert page.tags == plain.tags
    names = [name for name, _ in plain.attributes]
    assert [name for name, _ in page.attributes] == names
    assert page.rows[0]["caption"] == text
    assert page.rows[0]["notes"] == [text]


def test_the_page_needs_nothing_from_elsewhere() -> None:
    page = made(record("a.jpg"))

    assert not {"link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "href", "style")]
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    text = Path("gallery.html").read_text("utf-8")
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp|import\(|https?://", text)


@pytest.mark.parametrize(
    "name",
    ["a b#c?d%20.jpg", "javascript:alert(1)", "ünï 漢.jpg", os.fsdecode(b"\xff.jpg"), '"<.jpg'],
)
def test_a_link_leads_to_the_file_from_where_the_page_is(name: str) -> None:
    os.mkdir("pages")
    write_report(Path("pages/gallery.html"), [record(f"photos/{name}")])
    (row,) = Page(Path("pages/gallery.html")).rows

    assert unquote_to_bytes(row["href"]) == os.fsencode(f"../photos/{name}")
    assert re.fullmatch(r"[\w./~%-]+", row["href"], re.ASCII)


def test_after_the_last_thumbnail_that_fits_the_page_names_the_files() -> None:
    records = [record(draw(f"photos/{number}.png", size=(8, 6))) for number in range(100)]
    page = made(*records, max_thumbnail_bytes=1)

    shown = [bool(text) for text in page.thumbnails]
    assert shown == sorted(shown, reverse=True)
    assert 1 <= sum(shown) < 100


def test_records_are_taken_as_they_are_written() -> None:
    taken = written = ahead = 0

    def records() -> Iterator[CaptionRecord]:
        nonlocal taken, ahead
        for number in range(1000):
            taken += 1
            ahead = max(ahead, taken - written)
            yield record(f"{number}.jpg")

    def on_row() -> None:
        nonlocal written
        written += 1

    write_report(Path("gallery.html"), records(), on_row=on_row)
    assert (taken, written) == (1000, 1000)
    assert ahead < 100


def test_a_page_is_whole_or_the_old_one() -> None:
    made(record("old.jpg"))
    before = Path("gallery.html").read_bytes()

    def broken() -> Iterator[CaptionRecord]:
        yield record("new.jpg")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_report(Path("gallery.html"), broken())
    assert Path("gallery.html").read_bytes() == before
    assert not any(is_unfinished(name) for name in os.listdir())


def test_a_full_disk_is_an_error_that_names_the_page() -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(IdeficsError, match=r"cannot write `gallery.html`: File too large"):
            write_report(Path("gallery.html"), [record("a.jpg")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not any(is_unfinished(name) for name in os.listdir())


def test_only_a_page_of_ours_is_replaced(photos: Path) -> None:
    path = Path("gallery.html")
    check_report(path)
    write_report(path, [])
    check_report(path)

    path.write_text("<title>mine</title>")
    with pytest.raises(UsageError, match=r"`gallery.html` exists already, and is not a report"):
        check_report(path)
    check_report(path, overwrite=True)
    with pytest.raises(UsageError, match="it is a folder"):
        check_report(photos)
    with pytest.raises(UsageError, match="no folder `missing`"):
        check_report(Path("missing/gallery.html"))


# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with started(tmp_path_factory.mktemp("browser")) as running:
        yield running


def opened(browser: Browser, *records: CaptionRecord, **more: Any) -> None:
    write_report(Path("gallery.html"), records, **more)
    browser.resize(1200, 800)
    browser.messages()
    browser.open(Path("gallery.html").absolute())
    browser.settle()


def shown(browser: Browser) -> list[str]:
    """Return the captions or errors of the cards in the document, in order."""
    return list(browser.run("return [...document.querySelectorAll('.text')].map(e=>e.textContent)"))


def focused(browser: Browser) -> str | None:
    script = "const e = document.activeElement.closest('.card');"
    return str(browser.run(f"{script} return e && e.querySelector('.text').textContent"))


@needs_browser
def test_the_browser_shows_pictures_captions_and_failures_and_runs_nothing(
    browser: Browser,
) -> None:
    draw("photos/a.png")
    records = [
        record("photos/a.png", "A red cat"),
        record("photos/b.png", HOSTILE),
        failure(f"photos/{HOSTILE}.png"),
        replace(record("photos/c.png", "A long"), finish="length"),
        record("https://example.invalid/d.jpg", "From afar"),
    ]
    opened(browser, *records, title="Captions of photos")

    errors = [r.error for r in records if r.error]
    assert shown(browser) == ["A red cat", HOSTILE, *errors, "A long", "From afar"]
    images = "return [...document.querySelectorAll('.thumb img')].map(e=>[e.alt, e.naturalWidth])"
    assert browser.run(images) == [["A red cat", 224]]
    assert browser.messages() == []
    badges = "return [...document.querySelectorAll('.badge')].map(e=>e.textContent)"
    assert browser.run(badges) == ["failed", "cut off"]
    assert browser.run("return document.title") == "Captions of photos"
    for position in range(len(records)):
        browser.click(f".card[data-position='{position}']")
        assert browser.run("return document.getElementById('detail').open") is True
        browser.press("Escape")
    assert browser.run("return document.title") == "Captions of photos"
    assert [text for text in browser.messages() if "ERR_FILE_NOT_FOUND" not in text] == []


@needs_browser
def test_the_policy_would_stop_a_script_that_got_into_the_page(browser: Browser) -> None:
    write_report(Path("gallery.html"), [record("a.jpg")])
    path = Path("gallery.html")
    path.write_text(path.read_text("utf-8").replace("<main", f"{HOSTILE}<main"), "utf-8")
    browser.open(path.absolute())
    browser.settle()

    assert browser.run("return document.title") == "Captions"
    assert any("Content Security Policy" in text for text in browser.messages())


@needs_browser
def test_search_and_filters_leave_what_matches(browser: Browser) -> None:
    captions = ["A red cat", "A blue dog", "A red dog", "A CAT, red", "Nothing"]
    records = [record(f"photos/{number}.jpg", text) for number, text in enumerate(captions)]
    records[4] = failure("photos/4-red.jpg")
    opened(browser, *records)

    browser.press("/", *"red CAT")
    assert shown(browser) == ["A red cat", "A CAT, red"]
    assert browser.run("return document.getElementById('shown').textContent") == "2 of 5 pictures"
    browser.run("document.getElementById('query').value = 'red'")
    browser.click("input[value='error']")
    assert shown(browser) == ["cannot read `photos/4-red.jpg`"]
    browser.run("document.getElementById('query').value = 'nowhere'")
    browser.click("input[value='all']")
    assert shown(browser) == []
    assert browser.run("return document.getElementById('none').hidden") is False


@needs_browser
def test_all_can_be_done_by_the_keyboard(browser: Browser) -> None:
    opened(browser, *(record(f"{number}.jpg", f"Number {number}") for number in range(40)))

    browser.run("document.querySelector('.card').focus()")
    browser.press("Right", "Right", "Left")
    assert focused(browser) == "Number 1"
    browser.press("Down")
    columns = browser.run("return layout.columns")
    assert focused(browser) == f"Number {1 + columns}"
    browser.press("End")
    assert focused(browser) == "Number 39"
    browser.press("Enter")
    name = "return document.getElementById('detail-name').textContent"
    assert browser.run(name) == "39.jpg"
    browser.press("Left", "Left")
    assert browser.run(name) == "37.jpg"
    browser.press("Escape")
    assert focused(browser) == "Number 37"
    assert browser.run("return document.querySelectorAll('.card[tabindex=\"0\"]').length") == 1


@needs_browser
def test_of_ten_thousand_pictures_only_those_on_the_screen_are_in_the_document(
    browser: Browser,
) -> None:
    opened(browser, *(record(f"{number}.jpg", f"Number {number}") for number in range(10_000)))

    assert browser.run("return document.getElementById('shown').textContent") == "10,000 pictures"
    count = "return document.querySelectorAll('.cell').length"
    assert browser.run(count) < 60
    for share in (0.5, 1):
        browser.run(f"window.scrollTo(0, {share} * document.body.scrollHeight)")
        browser.settle()
        assert browser.run(count) < 60
    assert shown(browser)[-1] == "Number 9999"
    browser.press("/", *"9998")
    assert shown(browser) == ["Number 9998"]


@needs_browser
def test_a_moved_page_still_has_its_thumbnails(browser: Browser, photos: Path) -> None:
    write_report(Path("gallery.html"), [record(draw("photos/a.png"))])
    os.mkdir("elsewhere")
    shutil.move("gallery.html", "elsewhere/page.html")
    shutil.rmtree(photos)
    browser.open(Path("elsewhere/page.html").absolute())
    browser.settle()

    assert browser.run("return document.querySelector('.thumb img').naturalWidth") == 224


@needs_browser
def test_a_narrow_screen_scrolls_one_way_and_dark_is_dark(browser: Browser) -> None:
    opened(browser, *(record(f"{'long' * 20}{n}.jpg", "word" * 40) for n in range(9)))
    color = "return getComputedStyle(document.body).backgroundColor"
    light = browser.run(color)
    browser.resize(400, 700, dark=True)

    assert browser.run("return document.documentElement.scrollWidth") == 400
    assert browser.run("return layout.columns") == 2
    assert browser.run(color) != light
    browser.click(".card")
    assert browser.run("return document.getElementById('detail').scrollWidth") <= 400
