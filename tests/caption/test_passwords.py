"""The password of an address is in no file and on no stream of a run, which still continues."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from idefics_cli.caption.inputs.discover import discover
from idefics_cli.caption.resume.journal_lines import decode_line
from idefics_cli.core.errors import ImageError
from idefics_cli.core.sources import lacks_password, without_password
from idefics_cli.core.types import Attachment, GenerationRequest, ImageLimits
from idefics_cli.images.loader import ImageLoader
from tests.support.commands import Ran, World, run
from tests.support.fakes import FakeEngine
from tests.support.outputs import FORMATS, destination

SECRETS = ("S3CRET", "alice")
PICTURES = ("http://alice:S3CRET@h.org/a.png", "http://alice:S3CRET@h.org/b.png?size=2")
HIDDEN = "http://…@h.org/"


def answer(request: GenerationRequest) -> str:
    source = request.attachments[0].source
    assert source in PICTURES
    if "/b.png" in source:
        raise ImageError(f"cannot fetch `{HIDDEN}b.png?size=2`: no", kind="fetch_failed")
    return "a cat"


def caption(*arguments: str, engine: FakeEngine | None = None) -> Ran:
    world = World(engine or FakeEngine(answer))
    return run("caption", *arguments, services=world.services)


def assert_hidden(text: str) -> None:
    assert not [secret for secret in SECRETS if secret in text]


@pytest.mark.parametrize("format_", FORMATS)
def test_no_file_of_a_run_has_the_password(format_: str, here: Path) -> None:
    Path("out").mkdir()
    output = ("-f", format_, "-o", destination("out", format_), "--report", "out/g.html")
    ran = caption(*PICTURES, *output)
    assert ran.code == 3
    assert_hidden(ran.out + ran.err)
    files = {path.name: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    assert len(files) >= 4
    for data in files.values():
        assert_hidden(data.decode("utf-8", "replace"))
    assert '"href":"http://h.org/a.png"' in files["g.html"].decode()
    (failures,) = Path("out").rglob("*.failures.txt")
    assert failures.read_text("utf-8") == f"{HIDDEN}b.png?size=2\n"

    engine = FakeEngine(lambda request: request.attachments[0].source)
    ran = caption(*PICTURES, *output, "--retry-failed", engine=engine)
    assert ran.code == 0
    assert [request.attachments[0].source for request in engine.requests] == [PICTURES[1]]


def test_stdout_and_the_list_of_a_dry_run_have_no_password(here: Path) -> None:
    for arguments in ((), ("-f", "jsonl"), ("--dry-run",)):
        ran = caption(*PICTURES, *arguments)
        assert_hidden(ran.out + ran.err)
    Path("list.csv").write_text("url,x\n" + "".join(f"{uri},1\n" for uri in PICTURES))
    ran = caption("--filelist", "list.csv", "-p", "{x}", "-f", "jsonl")
    assert_hidden(ran.out + ran.err)
    assert [json.loads(line)["file_name"] for line in ran.out.splitlines()] == [
        f"{HIDDEN}a.png", f"{HIDDEN}b.png?size=2",
    ]  # fmt: skip


def test_an_address_without_its_password_says_so() -> None:
    for uri in PICTURES:
        hidden = without_password(uri)
        assert (lacks_password(hidden), lacks_password(uri)) == (True, False)
        with pytest.raises(ImageError, match="its user name and password were left out") as caught:
            ImageLoader(ImageLimits()).open(Attachment(hidden))
        assert "--retry-failed" in (caught.value.hint or "")
    assert not lacks_password("http://h.org/…@a.png")


def test_an_address_with_two_passwords_is_one_picture() -> None:
    (picture,) = discover(("http://a:1@h.org/a.png", "http://b:2@h.org/a.png")).pictures
    assert (picture.key, picture.attachment.source) == (
        "http://…@h.org/a.png", "http://a:1@h.org/a.png",
    )  # fmt: skip


def test_a_journal_with_passwords_is_continued(here: Path) -> None:
    caption(*PICTURES, "-o", "o.jsonl")
    journal = Path("o.jsonl.journal")
    lines = journal.read_text("utf-8").splitlines(keepends=True)
    fields = [decode_line(line.encode(), needs_checksum=True) for line in lines]
    fields[0]["journal"] = 1
    former = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in fields)
    journal.write_text(former.replace("…@", "alice:S3CRET@"), "utf-8")

    engine = FakeEngine(lambda request: "a dog")
    assert caption(*PICTURES, "-o", "o.jsonl", "--retry-failed", engine=engine).code == 0
    assert [request.attachments[0].source for request in engine.requests] == [PICTURES[1]]
    assert len(Path("o.jsonl").read_text("utf-8").splitlines()) == 2
