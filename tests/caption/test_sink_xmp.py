"""XMP sidecars: a caption is merged in, all else stays, and a person's words are never replaced."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import pytest

from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.sinks.base import Existing, SidecarError, Target
from idefics_cli.caption.sinks.xmp import XmpSink
from idefics_cli.caption.sinks.xmp_packet import ALT_TEXT, DESCRIPTION, Packet, Text
from idefics_cli.core.errors import UsageError
from idefics_cli.core.types import Attachment, CaptionRecord
from tests.support.commands import World, run
from tests.support.fakes import FakeEngine
from tests.support.outputs import Recorder, record, spoil
from tests.support.sidecars import ALL, DIGIKAM, OTHER_PREFIXES

DATE = datetime(2026, 11, 29, 12, tzinfo=UTC)
DC = "http://purl.org/dc/elements/1.1/"
XMP = "http://ns.adobe.com/xap/1.0/"
OURS = (f"{{{DC}}}description", f"{{{XMP}}}MetadataDate", "{urn:idefics-cli:xmp:1.0:}")
CAPTION = 'a cat <b> & "dog"\n«ünd» 漢'


PICTURES = (CaptionItem("a.jpg", Attachment("a.jpg"), "a.jpg"),)
TARGET = Target(Recorder(), pictures=PICTURES)


def sink(
    existing: Existing = "error",
    *,
    full_names: bool | None = None,
    columns: tuple[str, ...] = (),
) -> XmpSink:
    target = replace(TARGET, existing=existing, full_names=full_names, columns=columns)
    return XmpSink(target, now=lambda: DATE)


def write(sink: XmpSink, *records: CaptionRecord) -> None:
    with sink:
        for each in records:
            sink.write(each)


def description(path: str) -> Text:
    return Packet(Path(path).read_bytes()).text(DESCRIPTION)


def nodes(data: bytes) -> Iterator[tuple[str, str, str]]:
    """Yield every element and attribute with its path, but for those that a caption changes."""
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    waiting = [("", ElementTree.fromstring(data, parser))]
    while waiting:
        path, node = waiting.pop()
        tag = str(node.tag) if isinstance(node.tag, str) else "comment"
        if tag.startswith(OURS) or (tag.endswith("}Description") and not own(node)):
            continue
        yield f"{path}/{tag}", (node.text or "").strip(), ""
        for name, value in node.attrib.items():
            if not name.startswith(OURS):
                yield f"{path}/{tag}", name, value
        waiting += [(f"{path}/{tag}", child) for child in reversed(node)]


def own(node: ElementTree.Element) -> bool:
    """Whether a description has more than what a caption adds."""
    tags = [child.tag for child in node]
    return any(not isinstance(tag, str) or not tag.startswith(OURS) for tag in tags)


@pytest.mark.parametrize("program", ALL)
def test_every_other_node_of_a_sidecar_stays(program: str) -> None:
    before = ALL[program].encode()
    after = Packet(before).with_texts({DESCRIPTION: Text(CAPTION, is_ours=True)}, date="2026")

    assert list(nodes(after)) == list(nodes(before))
    assert Packet(after).text(DESCRIPTION) == Text(CAPTION, is_ours=True)
    assert b">2026<" in after or b'"2026"' in after
    for line in before.splitlines():
        assert line in after or b"MetadataDate" in line or line.endswith(b'"x-default"/>')
    again = Packet(after).with_texts({DESCRIPTION: Text("shorter", is_ours=True)}, date="2027")
    assert list(nodes(again)) == list(nodes(before))
    assert Packet(again).text(DESCRIPTION).text == "shorter"
    assert len(again) < len(after)


def test_a_description_in_another_language_is_a_persons_and_stays() -> None:
    packet = Packet(OTHER_PREFIXES.encode())
    assert packet.text(DESCRIPTION) == Text("Un lac dans les Alpes")

    after = packet.with_texts({DESCRIPTION: Text("x")}, date="2026")
    root = ElementTree.fromstring(after)
    items = [item.text or "" for item in root.findall(f".//{{{DC}}}description//*")]
    assert [text.strip() for text in items] == ["", "x", "", "Un lac dans les Alpes"]


@pytest.mark.parametrize("existing", ["error", "skip", "overwrite"])
def test_the_words_of_a_person_are_never_replaced(existing: Existing, here: Path) -> None:
    person = Packet(DIGIKAM.encode()).with_texts({DESCRIPTION: Text("Anna, 2024")}, date="2026")
    Path("a.jpg.xmp").write_bytes(person)

    if existing == "error":
        with pytest.raises(UsageError, match=r"`a.jpg.xmp` has a description already") as told:
            write(sink(existing))
        assert told.value.hint == (
            "`--existing skip` and `overwrite` leave alone what a person wrote; `append` and "
            "`prepend` add to it"
        )
    else:
        with sink(existing) as opened:
            assert opened.completed() == {"a.jpg"}
            with pytest.raises(SidecarError, match=r"^`a\.jpg\.xmp` has a description by a person"):
                opened.write(record("a.jpg"))
    assert Path("a.jpg.xmp").read_bytes() == person


@pytest.mark.parametrize(
    ("existing", "expected"), [("append", "Anna, 2024 a cat"), ("prepend", "a cat Anna, 2024")]
)
def test_a_caption_is_joined_with_the_words_of_a_person_and_they_stay_theirs(
    existing: Existing, expected: str, here: Path
) -> None:
    person = Packet(DIGIKAM.encode()).with_texts({DESCRIPTION: Text("Anna, 2024")}, date="2026")
    Path("a.jpg.xmp").write_bytes(person)

    for _ in range(2):
        write(sink(existing), record("a.jpg"))
        assert description("a.jpg.xmp") == Text(expected, is_ours=False)


def test_our_own_words_are_replaced_on_request_until_a_person_edits_them(here: Path) -> None:
    write(sink(), record("a.jpg", "one"))
    write(sink("overwrite"), record("a.jpg", "two"))
    assert description("a.jpg.xmp") == Text("two", is_ours=True)

    Path("a.jpg.xmp").write_text(Path("a.jpg.xmp").read_text().replace("two", "two, by me"))
    with sink("overwrite") as opened:
        assert opened.completed() == {"a.jpg"}


@pytest.mark.parametrize(
    "form",
    [
        '<rdf:Description xmlns:dc="{dc}" dc:description="by me"/>',
        '<rdf:Description xmlns:dc="{dc}"><dc:description>by me</dc:description></rdf:Description>',
        '<rdf:Description/><rdf:Description xmlns:d="{dc}"><d:description><rdf:Bag>'
        '<rdf:li xml:lang="x-default">by me</rdf:li></rdf:Bag></d:description></rdf:Description>',
    ],
)
def test_odd_forms_of_a_description_count_too(form: str) -> None:
    packet = Packet(PLAIN.format(form.format(dc=DC)).encode())
    assert packet.text(DESCRIPTION) == Text("by me")

    joined = packet.with_texts({DESCRIPTION: Text(CAPTION, is_ours=True)}, date="2026")
    assert Packet(joined).text(DESCRIPTION) == Text(CAPTION, is_ours=True)


PLAIN = '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">{}</rdf:RDF>'


@pytest.mark.parametrize(
    "form",
    [
        "",
        '<rdf:Description xmlns:dc="{dc}"><dc:description/></rdf:Description>',
        '<rdf:Description xmlns:dc="{dc}"><dc:description><rdf:Alt/></dc:description>'
        "</rdf:Description>",
        '<rdf:Description xmlns:dc="{dc}"><dc:description><rdf:Alt><rdf:li xml:lang="x-default"/>'
        "</rdf:Alt></dc:description></rdf:Description>",
    ],
)
def test_an_empty_description_is_filled(form: str) -> None:
    packet = Packet(PLAIN.format(form.format(dc=DC)).encode())
    assert packet.text(DESCRIPTION) == Text()

    filled = packet.with_texts({DESCRIPTION: Text(CAPTION, is_ours=True)}, date="2026")
    assert Packet(filled).text(DESCRIPTION) == Text(CAPTION, is_ours=True)


@pytest.mark.parametrize(("full_names", "name"), [(None, "a.jpg.xmp"), (False, "a.xmp")])
def test_sidecars_have_the_names_of_digikam_or_of_lightroom(
    full_names: bool | None, name: str, here: Path
) -> None:
    write(sink(full_names=full_names), record("a.jpg"))

    assert os.listdir() == [name]


def test_the_answer_named_alt_text_is_the_alternative_text(here: Path) -> None:
    answers = (("caption", "A cat on a mat."), ("alt_text", "cat"))
    row = CaptionRecord("a.jpg", caption="A cat on a mat.\ncat", answers=answers)
    write(sink(columns=("caption", "alt_text")), row)

    packet = Packet(Path("a.jpg.xmp").read_bytes())
    assert packet.text(DESCRIPTION) == Text("A cat on a mat.", is_ours=True)
    assert packet.text(ALT_TEXT) == Text("cat", is_ours=True)


LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "lol">'
    + "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(12))
    + "]>"
    + PLAIN.format("&m;")
)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (LAUGHS.encode(), "it has a DTD"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', "it has a DTD"),
        (b"not XML", "it is not XML"),
        (b"<a>&undefined;</a>", "it is not XML"),
        (b"<a/>", "it has no rdf:RDF"),
        ("<a/>".encode("utf-16"), "it is not UTF-8"),
        (b"<a>\xff</a>", "it is not XML"),
        (PLAIN.format(" " * 2**24).encode(), "it is larger than 16 MiB"),
    ],
)
def test_a_sidecar_that_is_no_xmp_fails_its_picture_and_stays(
    data: bytes, reason: str, here: Path
) -> None:
    Path("a.jpg.xmp").write_bytes(data)

    with pytest.raises(ValueError, match=reason):
        Packet(data)
    with sink() as opened, pytest.raises(SidecarError):
        opened.write(record("a.jpg"))
    assert Path("a.jpg.xmp").read_bytes() == data
    assert os.listdir() == ["a.jpg.xmp"]


def test_deep_and_wide_sidecars_take_no_time() -> None:
    deep, wide = "<a>" * 70_000 + "</a>" * 70_000, '<a b="' + ">" * 10 + '"/>' * 1
    started = time.process_time()
    Packet(PLAIN.format(deep).encode())
    Packet(PLAIN.format(wide * 25_000).encode())

    assert time.process_time() - started < 10  # quadratic work would take minutes


@pytest.mark.parametrize("kind", ["device", "pipe", "large", "sparse"])
@pytest.mark.skipif(os.name == "nt", reason="pipes and devices of Unix")
def test_what_is_no_small_file_fails_its_picture(kind: str, here: Path) -> None:
    spoil(Path("a.jpg.xmp"), kind)

    with sink() as opened, pytest.raises(SidecarError, match=r"cannot .* `.*a.jpg.xmp`"):
        opened.write(record("a.jpg"))


def test_a_second_run_does_nothing_and_a_changed_picture_is_captioned_again(here: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        Path(name).write_text(name)
    Path("b.jpg.xmp").write_text(DIGIKAM)

    def caption(*options: str) -> tuple[int, int]:
        engine = FakeEngine(lambda request: f"a picture of {request.attachments[0].source}")
        ran = run(
            "caption", "a.jpg", "b.jpg", "-f", "xmp", *options, services=World(engine).services
        )
        return ran.code, len(engine.requests)

    def sidecars() -> dict[str, tuple[bytes, int]]:
        return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in here.glob("*.xmp")}

    assert caption() == (0, 2)
    first = sidecars()
    assert list(nodes(first["b.jpg.xmp"][0])) == list(nodes(DIGIKAM.encode()))
    assert caption() == (0, 0)
    assert sidecars() == first
    Path("b.jpg").write_text("another picture")
    assert caption() == (0, 1)
    os.remove("idefics-caption-xmp.journal")
    assert caption() == (2, 0)
    assert caption("--existing", "skip") == (0, 0)


def test_a_link_to_a_sidecar_stays_a_link_and_its_file_keeps_its_mode(here: Path) -> None:
    Path("store").mkdir()
    kept = Path("store/a.xmp")
    kept.write_text(DIGIKAM)
    kept.chmod(0o640)
    Path("a.jpg.xmp").symlink_to(kept)

    write(sink(), record("a.jpg"))
    assert Path("a.jpg.xmp").is_symlink()
    assert description("store/a.xmp") == Text("a cat", is_ours=True)
    assert os.name == "nt" or kept.stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir("store")) == ["a.xmp"]


def test_a_sidecar_that_is_read_only_fails_its_picture_and_stays(here: Path) -> None:
    path = Path("a.jpg.xmp")
    path.write_text(DIGIKAM)
    path.chmod(0o444)

    with sink() as opened, pytest.raises(SidecarError, match=r"cannot write .*: it is read-only"):
        opened.write(record("a.jpg"))
    assert path.read_text() == DIGIKAM
    assert os.listdir() == ["a.jpg.xmp"]


def test_a_sidecar_that_another_program_writes_meanwhile_stays_as_that_wrote_it(here: Path) -> None:
    path = Path("a.jpg.xmp")
    path.write_text(DIGIKAM)

    def now() -> datetime:  # after the sidecar was read
        path.write_text(DIGIKAM.replace('Rating="4"', 'Rating="5!"'))
        return DATE

    busy = XmpSink(TARGET, now=now)
    with busy as opened, pytest.raises(SidecarError, match="another program has changed it"):
        opened.write(record("a.jpg"))
    assert 'Rating="5!"' in path.read_text()


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
@pytest.mark.parametrize("program", ALL)
def test_exiftool_reads_every_value_that_it_read_before_and_the_caption(
    program: str, here: Path
) -> None:
    def values() -> dict[str, object]:
        command = ["exiftool", "-json", "-struct", "-G1", "-XMP:all", "a.jpg.xmp"]
        (found,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        return {name: value for name, value in found.items() if "MetadataDate" not in name}

    Path("a.jpg.xmp").write_text(ALL[program])
    before = values()
    write(sink(), record("a.jpg", "a cät"))
    after = values()
    assert after.pop("XMP-dc:Description") == "a cät"
    assert {name: after.get(name) for name in before if name != "XMP-dc:Description"} == {
        name: value for name, value in before.items() if name != "XMP-dc:Description"
    }
