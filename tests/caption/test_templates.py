"""Prompts with fields: which braces are fields, and which values fill them in."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from idefics_cli.caption.inputs.discover import discover
from idefics_cli.caption.inputs.lists import parse_list
from idefics_cli.caption.inputs.templates import FIELDS, Template, parse_template
from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.job import CaptionJob, CaptionQuestion, named_questions
from idefics_cli.core.errors import IdeficsError, ImageError, PromptError, UsageError
from idefics_cli.core.types import Attachment, ImageLimits
from idefics_cli.images.loader import ImageLoader
from tests.support.outputs import spoil


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def prompt(
    text: str, picture: CaptionItem, columns: tuple[str, ...] = (), folder: str | None = None
) -> str:
    job = CaptionJob((picture,), (CaptionQuestion(text),), columns=columns, captions_folder=folder)
    (request,) = job.requests(picture)
    return request.messages[0].text


def file(path: str, **columns: str) -> CaptionItem:
    return CaptionItem(path, Attachment(path), path, tuple(columns.items()))


def saved(path: str, size: tuple[int, int] = (20, 10), **how: Any) -> CaptionItem:
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    Image.new("RGB", size).save(path, **how)
    return file(path)


class TestBraces:
    @pytest.mark.parametrize(
        "text",
        [
            "Describe this image.",
            'As JSON: {"a": 1}',
            'As JSON: {"a": {"b": [1, {}]}}',
            "{}, {0}, { }, {a b}, {-1}, }{, } }} }}}",
            "\\frac{1}{2} {\n  x\n}",
        ],
    )
    def test_braces_around_no_name_stand_for_themselves(self, text: str) -> None:
        assert parse_template(text) == Template((text,))

    def test_python_means_the_same_by_fields_and_doubled_braces(self) -> None:
        values = {"stem": "STEM", "x": "X"}
        pieces = ["{stem}", "{x}", "{{", "}}", " a ", '"b": ']
        random_ = random.Random(4)
        compared = 0
        for _ in range(2000):
            text = "".join(random_.choice(pieces) for _ in range(random_.randint(0, 7)))
            # A brace that closes nothing is allowed here, but not in Python, and `{{{{x}}` differs.
            depth = [text[:end].count("{{") - text[:end].count("}}") for end in range(len(text))]
            if min(depth, default=0) < 0 or text.count("{{") != text.count("}}"):
                continue
            compared += 1
            assert parse_template(text, ("x",)).fill(values) == text.format(**values), text
        assert compared > 300

    def test_a_column_of_several_words_is_a_field_too(self) -> None:
        template = parse_template("{alt text} {other text}", ("alt text",))

        assert template.fields == ("alt text",)
        assert template.fill({"alt text": "a {stem}"}) == "a {stem} {other text}"

    @pytest.mark.parametrize(
        ("text", "message", "hint"),
        [
            ("{subjekt}", "unknown field `{subjekt}`", "did you mean `{subject}`?"),
            ("{Stem}", "unknown field `{Stem}`", "did you mean `{stem}`?"),
            ("{qq}", "unknown field `{qq}`", "fields are stem, name, folder, existing, width"),
            ("{stem!r}", "`{stem!r}`, and a field is only a name", "write `{stem}`; doubled"),
            ("{ subject }", "`{ subject }`, and a field is only a name", "write `{subject}`"),
            ("{width:>5}", "`{width:>5}`, and a field is only a name", "write `{width}`"),
        ],
    )
    def test_a_field_that_nothing_fills_is_wrong_usage_with_a_guess(
        self, text: str, message: str, hint: str
    ) -> None:
        with pytest.raises(UsageError) as caught:
            parse_template(text, ("subject",))
        assert message in str(caught.value)
        assert str(caught.value.hint).startswith(hint)


class TestValues:
    def test_names_are_those_of_the_file_wherever_it_was_named_from(
        self, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text = "{stem}|{name}|{folder}"

        assert prompt(text, file("photos/a.b.jpg")) == "a.b|a.b.jpg|photos"
        assert prompt(text, file("a.jpg")) == prompt(text, file(f"{here}/a.jpg")) == "a|a.jpg|here"
        monkeypatch.chdir(here.parent)
        assert prompt(text, file("here/../here/a")) == "a|a|here"

    def test_an_address_has_names_too_and_what_has_none_fails(self) -> None:
        assert prompt("{stem}|{name}|{folder}", file("https://x.org/my%20f/a.jpg?s=1")) == (
            "a|a.jpg|my f"
        )
        for key in ("-", "data:image/png;base64,xx", "clipboard:"):
            with pytest.raises(PromptError, match="has no file name"):
                prompt("{stem}", file(key))

    @pytest.mark.skipif(os.name == "nt", reason="such a name is not allowed here")
    def test_bytes_that_are_no_text_become_a_mark(self) -> None:
        assert prompt("{stem}", file(os.fsdecode(b"caf\xe9.jpg"))) == "caf\ufffd"

    def test_what_is_filled_in_is_not_looked_at_again(self) -> None:
        assert prompt("{stem} {x}", file("{name}.jpg", x="{stem} {{"), ("x",)) == "{name} {stem} {{"

    def test_a_column_of_the_list_wins_over_a_field(self) -> None:
        picture = file("a.jpg", **dict.fromkeys(FIELDS, "mine"))

        text = " ".join(f"{{{name}}}" for name in FIELDS)
        assert prompt(text, picture, tuple(FIELDS)) == " ".join(["mine"] * len(FIELDS))

    def test_a_row_without_the_column_is_a_failure_of_its_picture_and_an_empty_text_is_none(
        self,
    ) -> None:
        assert prompt("<{x}>", file("a.jpg", x=""), ("x",)) == "<>"
        with pytest.raises(PromptError, match=r"`a\.jpg` has no `x` for the prompt"):
            prompt("<{x}>", file("a.jpg"), ("x",))

    def test_a_prompt_that_comes_out_empty_is_a_failure(self) -> None:
        with pytest.raises(PromptError, match=r"the prompt for `a\.jpg` is empty"):
            prompt("{x}", file("a.jpg", x=" "), ("x",))

    @pytest.mark.parametrize("text", ["{width}x{height}", "{width}", "{height}"])
    def test_a_size_is_read_only_when_it_is_asked_for(self, text: str) -> None:
        assert prompt("no {stem}", file("nosuch.jpg")) == "no nosuch"
        with pytest.raises(ImageError, match="no such file"):
            prompt(text, file("nosuch.jpg"))

    def test_limits_hold_for_a_header_too(self) -> None:
        picture = saved("a.png", (20, 10))
        job = CaptionJob(
            (picture,), (CaptionQuestion("{width}"),), limits=ImageLimits(max_pixels=199)
        )

        with pytest.raises(ImageError, match="20x10 pixels, the limit is 199"):
            job.requests(picture)

    @pytest.mark.parametrize("orientation", [1, 3, 6, 8])
    @pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "ICO", "PPM"])
    def test_the_size_is_that_of_the_picture_as_the_model_gets_it(
        self, format_: str, orientation: int
    ) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture = saved("a", (64, 32), format=format_, exif=exif)

        width, height = ImageLoader(ImageLimits()).open(Attachment("a")).size
        assert prompt("{width}x{height}", picture) == f"{width}x{height}"

    def test_the_size_of_what_comes_only_once_is_not_known(self) -> None:
        for key in ("-", "https://x.org/a.jpg", "clipboard:"):
            with pytest.raises(PromptError, match="the size of"):
                prompt("{width}", file(key))


class TestExisting:
    def test_it_is_the_text_file_beside_the_picture_of_either_name(self) -> None:
        os.mkdir("p")
        Path("p/a.jpg.txt").write_text("\ufeffsecond \n", "utf-8")
        assert prompt("<{existing}>", file("p/a.jpg")) == "<second>"
        Path("p/a.txt").write_text("first\nline\n", "utf-8")
        assert prompt("<{existing}>", file("p/a.jpg")) == "<first\nline>"

    def test_a_folder_of_captions_comes_first_and_keeps_the_tree(self) -> None:
        os.makedirs("out/p")
        Path("a.txt").write_text("beside", "utf-8")
        picture = CaptionItem("a.jpg", Attachment("a.jpg"), "p/a.jpg")

        assert prompt("{existing}", picture, folder="out") == "beside"
        Path("out/p/a.txt").write_text("in the tree", "utf-8")
        assert prompt("{existing}", picture, folder="out") == "in the tree"

    def test_the_caption_of_the_row_comes_before_all(self) -> None:
        Path("a.txt").write_text("beside", "utf-8")

        assert prompt("{existing}", file("a.jpg", caption="row"), ("caption",)) == "row"
        assert prompt("{existing}", file("a.jpg"), ("caption",)) == "beside"

    def test_none_and_no_text_are_failures_and_an_empty_file_is_none(self) -> None:
        with pytest.raises(PromptError, match=r"`a\.jpg` has no existing caption"):
            prompt("<{existing}>", file("a.jpg"))
        Path("a.txt").touch()
        assert prompt("<{existing}>", file("a.jpg")) == "<>"
        Path("a.txt").write_bytes(b"caf\xe9")
        with pytest.raises(PromptError, match=r"the caption `a\.txt` is not UTF-8 text"):
            prompt("<{existing}>", file("a.jpg"))

    @pytest.mark.parametrize("kind", ["device", "pipe", "large", "sparse"])
    def test_what_has_no_end_is_the_failure_of_its_picture(self, kind: str) -> None:
        spoil(Path("a.txt"), kind)
        with pytest.raises(PromptError, match=r"cannot read the caption `a\.txt`: (it is|Not a)"):
            prompt("<{existing}>", file("a.jpg"))


def test_many_threads_get_what_one_does() -> None:
    data = "\n".join(f'{{"path": "p/{n}.png", "x": "{n}"}}' for n in range(100)).encode()
    for number in range(100):
        saved(f"p/{number}.png", (number + 1, 5))
    listing = discover([], lists=[parse_list(data)])
    questions = (
        CaptionQuestion("{stem} {x} {width}", "a"),
        CaptionQuestion("{folder} {height}", "b"),
    )
    job = CaptionJob(listing.pictures, questions, columns=listing.columns)

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(job.requests, job.pictures))
    assert together == [job.requests(picture) for picture in job.pictures]
    assert [r.messages[0].text for r in together[7]] == ["7 7 8", "p 5"]
    assert parse_template.cache_info().maxsize is not None


class TestNamedQuestions:
    def test_a_question_is_all_that_follows_the_first_equals_sign(self) -> None:
        assert named_questions(["subject=What is it?", " x_1 = a=b"]) == (
            CaptionQuestion("What is it?", "subject"),
            CaptionQuestion(" a=b", "x_1"),
        )

    @pytest.mark.parametrize(
        ("texts", "message", "hint"),
        [
            (["What is it?"], "`--ask` needs a name and a question", "`--ask subject="),
            (["=x"], "`` cannot be the name of a column", "`--ask subject="),
            (["my mood=x"], "`my mood` cannot be the name of a column", "did you mean `my_mood`?"),
            (["1=x"], "`1` cannot be the name of a column", "`--ask subject="),
            (["Width=x"], "`Width` cannot be the name of a question: each row has", ""),
            (["file_name=x"], "`file_name` cannot be the name of a question", ""),
            (["a=x", "A=y"], "two questions are named `A`", ""),
            (["a= "], "the question `a` is empty", "`--ask subject="),
        ],
    )
    def test_a_wrong_name_is_told(self, texts: list[str], message: str, hint: str) -> None:
        with pytest.raises(IdeficsError) as caught:
            named_questions(texts)
        assert str(caught.value).startswith(message)
        assert (caught.value.hint or "").startswith(hint)


class TestMetadata:
    TEXT = "<{date}|{description}|{keywords}>"
    XMP = (
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description'
        ' xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:xmp="http://ns.adobe.com/xap/1.0/"'
        ' xmp:CreateDate="2023-01-02T03:04:05" dc:description="%s"><dc:subject><rdf:Bag>'
        "<rdf:li>cat</rdf:li><rdf:li>red mat</rdf:li></rdf:Bag></dc:subject>"
        "</rdf:Description></rdf:RDF>"
    )

    @pytest.mark.parametrize("name", ["p/a.jpg", "p/a.png", "p/a.webp", "p/a.tif"])
    def test_date_and_description_come_from_the_picture(self, name: str) -> None:
        exif = Image.Exif()
        exif[0x010E] = "A cat"
        exif.get_ifd(0x8769)[0x9003] = "2024:05:01 10:00:00"

        assert prompt(self.TEXT, saved(name, exif=exif.tobytes())) == "<2024-05-01|A cat|>"

    @pytest.mark.parametrize("name", ["p/a.jpg", "p/a.webp"])
    def test_xmp_in_the_picture_comes_before_exif_and_a_sidecar_before_both(
        self, name: str
    ) -> None:
        exif = Image.Exif()
        exif[0x010E] = "in EXIF"
        picture = saved(name, exif=exif.tobytes(), xmp=(self.XMP % "in XMP").encode())
        assert prompt(self.TEXT, picture) == "<2023-01-02|in XMP|cat, red mat>"

        Path(f"{os.path.splitext(name)[0]}.xmp").write_text(self.XMP % "of Adobe")
        assert prompt("{description}", picture) == "of Adobe"
        Path(f"{name}.xmp").write_text(self.XMP % "of digiKam")
        assert prompt("{description}", picture) == "of digiKam"

    def test_the_description_of_a_png_may_be_a_text_chunk(self) -> None:
        texts = PngInfo()
        texts.add_itxt("Description", "By Ann")
        assert prompt("{description}", saved("p/a.png", pnginfo=texts)) == "By Ann"

    def test_without_metadata_and_with_damaged_metadata_the_fields_are_empty(self) -> None:
        picture = saved("p/a.jpg", exif=b"Exif\0\0damaged", xmp=b"<x")
        Path("p/a.jpg.xmp").write_text("<!DOCTYPE x [<!ENTITY a 'b'>]><x/>")
        assert prompt(self.TEXT, picture) == "<||>"
        assert prompt(self.TEXT, file("https://x.org/a.jpg")) == "<||>"
        assert prompt(self.TEXT, file("missing.jpg", date="today"), ("date",)) == "<today||>"
