"""Exports: one file with everything, in which user text is never markup."""

from __future__ import annotations

import base64
import io
import json
import os
import stat
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from idefics_cli.chat.attachments import StagedPicture
from idefics_cli.chat.conversation import Conversation
from idefics_cli.chat.export import FORMATS, format_of, to_html, to_json, to_markdown, write_export
from idefics_cli.chat.store.sessions import NullStore, SessionStore
from idefics_cli.core.errors import IdeficsError, UsageError

EVIL = "<script>alert(1)</script> & \"'</div> <img src=x onerror=y> \x1b[2J\n# no heading"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Collects the text and the tags of a page; fails if tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.setdefault(self.open[-1], []).append(data)

    def images(self) -> list[bytes]:
        sources = [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]
        return [base64.b64decode(source.partition(";base64,")[2]) for source in sources]


def picture(color: str, file_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), color).save(buffer, file_format)
    return buffer.getvalue()


@pytest.fixture
def conversation(tmp_path: Path) -> Conversation:
    with SessionStore(tmp_path / "data").create("demo", system="Be <brief>.") as session:
        pictures = [
            StagedPicture("/home/me/private/a.png", picture("red")),
            StagedPicture('/home/me/private/<b "x">.png', picture("blue")),
            StagedPicture("/home/me/private/gone.png", picture("green")),
        ]
        session.ask(EVIL, pictures)
        session.reply(EVIL, "cancelled")
        session.drop(2)
        session.ask("And now?")
        session.reply("A **bold** answer.", "stop")
        Path(session.conversation.pictures[2].attachment.source).unlink()
        return session.conversation


def test_a_page_shows_every_text_as_text(conversation: Conversation) -> None:
    page = Page(to_html(conversation))
    shown = EVIL.replace("\x1b", "\u241b")
    assert page.texts["div"] == ["Be <brief>.", shown, shown, "And now?", "A **bold** answer."]
    assert page.texts["h2"] == ["System", "You", "demo", "You", "demo"]
    assert page.texts["p"] == ["Picture 3: gone.png (missing)", "(interrupted)"]
    tags = {tag for tag, _ in page.tags}
    assert "script" not in tags
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "\x1b" not in to_html(conversation)


def test_a_page_holds_its_pictures_and_fetches_nothing(conversation: Conversation) -> None:
    text = to_html(conversation)
    page = Page(text)
    assert page.images() == [picture("red"), picture("blue")]
    alts = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert alts == ["Picture 1: a.png", 'Picture 2: <b "x">.png (dropped)']
    for _, attributes in page.tags:
        assert not {"href", "srcset", "action"} & attributes.keys()
        assert (attributes.get("src") or "data:").startswith("data:")
    assert "url(" not in text
    assert "@import" not in text


def test_a_page_is_for_light_and_dark_screens(conversation: Conversation) -> None:
    assert "prefers-color-scheme: dark" in to_html(conversation)
    schemes = [
        a["content"] for t, a in Page(to_html(conversation)).tags if a.get("name") == "color-scheme"
    ]
    assert schemes == ["light dark"]


@pytest.mark.parametrize(
    ("answer", "written"),
    [
        ("<doctag><loc_12>A</doctag>", "\\<doctag>\\<loc_12>A\\</doctag>"),
        ("2 < 3 <= 4 \\<b> <https://x.org>", "2 < 3 <= 4 \\<b> <https://x.org>"),
        ("`<a>` ``x` <b>`` <c> ` <d>", "`<a>` ``x` <b>`` \\<c> ` \\<d>"),
        ("```html\n<a>\n```\n<b>\n~~~\n<c>", "```html\n<a>\n```\n\\<b>\n~~~\n<c>"),
    ],
)
def test_tags_in_an_answer_stay_visible_in_markdown(answer: str, written: str) -> None:
    session = NullStore().create("demo")
    session.ask("Convert this page.")
    session.reply(answer, "stop")
    assert f"\n\n{written}\n" in to_markdown(session.conversation)


@pytest.mark.parametrize("export", FORMATS.values(), ids=FORMATS)
def test_the_path_of_a_picture_is_nobodys_business(
    conversation: Conversation, export: object, tmp_path: Path
) -> None:
    assert callable(export)
    text = export(conversation)
    assert "/home/me" not in text
    assert "a.png" in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize("file_format", ["TIFF", "PPM", "TGA", "JPEG2000"])
def test_what_a_browser_cannot_show_is_converted(file_format: str) -> None:
    data = picture("red", file_format)
    with NullStore().create("demo") as session:
        session.ask("a?", [StagedPicture("a", data)])
        (inside,) = Page(to_html(session.conversation)).images()
    with Image.open(io.BytesIO(inside)) as image, Image.open(io.BytesIO(data)) as original:
        assert image.format == "PNG"
        assert image.tobytes() == original.convert("RGB").tobytes()


def test_markdown_quotes_questions_and_holds_its_pictures(conversation: Conversation) -> None:
    lines = to_markdown(conversation).splitlines()
    assert [line for line in lines if line.startswith("#")] == [
        "# \\<script>alert(1)\\</script> \\& \"'\\</div> \\<img src=x onerror=y> "
        "\u241b\\[2J \\# no heading",
        "## You",
        "## demo",
        "# no heading",  # in a reply, which is Markdown
        "## You",
        "## demo",
    ]
    assert r"> \# no heading" in lines
    assert "![Picture 1: a.png][picture 1]" in lines
    assert "*Picture 3: gone.png (missing)*" in lines
    links = dict(line.split(": ", 1) for line in lines if line.startswith("[picture"))
    assert links.keys() == {"[picture 1]", "[picture 2]"}
    assert base64.b64decode(links["[picture 1]"].partition(",")[2]) == picture("red")


def test_json_has_the_texts_to_the_letter(conversation: Conversation) -> None:
    record = json.loads(to_json(conversation))
    assert [turn["text"] for turn in record["turns"]] == [EVIL, "And now?"]
    assert [turn["reply"]["text"] for turn in record["turns"]] == [EVIL, "A **bold** answer."]
    assert [turn["reply"]["finish"] for turn in record["turns"]] == ["cancelled", "stop"]
    assert record["turns"][0]["pictures"] == [1, 2, 3]
    assert record["system"] == "Be <brief>."
    data = [row["data"] and base64.b64decode(row["data"]) for row in record["pictures"]]
    assert data == [picture("red"), picture("blue"), None]
    assert [row["dropped"] for row in record["pictures"]] == [False, True, False]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_conversation_without_a_word_and_one_without_an_answer_can_be_exported(kind: str) -> None:
    empty = Conversation("demo")
    assert FORMATS[kind](empty)
    assert "a?" in FORMATS[kind](empty.asked("a?"))
    assert FORMATS[kind](empty.asked("\udce9?")).encode()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_is_the_text_and_is_not_replaced_unasked(
    conversation: Conversation, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "out.txt"
    write_export(conversation, kind, path)
    assert path.read_bytes().decode() == FORMATS[kind](conversation)
    path.write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        write_export(conversation, kind, path)
    assert path.read_text() == "mine"
    write_export(conversation, kind, path, overwrite=True)
    assert path.read_bytes().decode() == FORMATS[kind](conversation)
    if os.name != "nt":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_cannot_be_written_is_an_error(
    conversation: Conversation, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        write_export(conversation, "md", tmp_path)
    with pytest.raises(IdeficsError, match=r"no folder `.*none`") as caught:
        write_export(conversation, "md", tmp_path / "none" / "a.md")
    assert caught.value.hint == "make the folder first"
    with pytest.raises(UsageError, match="too long"):
        write_export(conversation, "md", tmp_path / ("x" * 300))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.md", "md"), ("a.HTML", "html"), ("a.htm", "html"), ("a.json", "json"), ("a.txt", None)],
)
def test_the_name_of_a_file_tells_the_format(name: str, kind: str | None) -> None:
    assert format_of(Path(name)) == kind
