"""Pictures in a chat: in the line, staged, pasted and fetched."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.chat import ChatWorld, world
from tests.support.fakes import FAKE_SPEC, FakeEngine
from tests.support.sources import install_xclip


@pytest.mark.parametrize(
    "line",
    ["{p}/a.png What?", "'{p}/my dog.png' What?", "What? {p}/my\\ dog.png", "@a.png What?",
     "file://{p}/my%20dog.png What?", "What is in @a.png?", '@"my dog.png" What?'],
)  # fmt: skip
def test_a_picture_in_the_line_goes_with_the_text(
    tmp_path: Path, pictures: Path, line: str
) -> None:
    here = world(tmp_path, "Red.")
    out, err, _ = here.talk(line.format(p=pictures))
    (request,) = here.engine.requests
    assert out == "Red.\n"
    assert len(request.attachments) == 1
    assert "png" not in request.messages[0].text
    assert request.messages[0].text.startswith("What")
    assert "[1]" in err
    assert "10 tokens" in err


def test_staged_pictures_are_shown_and_sent_with_the_next_text_only(
    tmp_path: Path, pictures: Path
) -> None:
    here = world(tmp_path, "Red.", "Yes.")
    _, err, person = here.talk("/image *.png", "What?", "Sure?")
    assert [len(r.messages[0].attachments) for r in here.engine.requests] == [3, 3]
    assert [len(r.attachments) for r in here.engine.requests] == [3, 3]
    assert [prompt for prompt, _ in person.seen] == ["> ", "3 pictures > ", "> ", "> "]
    assert err.startswith(
        "[1] a.png, 8x6 landscape, 10 tokens, goes with your next message\n[2] b.png, 10x4 l"
    )


@pytest.mark.parametrize(
    "line", ["/image nothere.png", "@nothere.png What?", "What is in /nothere/x.png?", "/image *.x"]
)
def test_a_missing_picture_is_an_error_at_once_and_nothing_is_asked(
    tmp_path: Path, pictures: Path, line: str
) -> None:
    here = world(tmp_path)
    _, err, person = here.talk("/image a.png", line)
    assert "error: " in err
    assert here.engine.requests == []
    assert len(here.chat.turns.staged) == 1
    assert person.recalls[-1] == ("" if line.startswith("/") else line)


def test_a_picture_that_exif_turns_is_told_so(tmp_path: Path, pictures: Path) -> None:
    image = Image.new("RGB", (8, 6))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned
    image.save(pictures / "turned.jpg", exif=exif)
    _, err, _ = world(tmp_path).talk("/image turned.jpg")
    assert "[1] turned.jpg, 6x8 portrait, turned upright, 10 tokens" in err


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("a.tif", ", page 1 of 4"),
        ("thumbnail-first.tif", ", page 2 of 4"),
        ("a.gif", ", one frame of an animation"),
        ("a.webp", ", one frame of an animation"),
        ("a.mpo", ""),  # a second view, as phones and stereo cameras write
        ("single.tif", ""),
    ],
)
def test_of_a_file_with_several_pages_the_one_that_is_seen_is_told(
    name: str, part: str, tmp_path: Path, pictures: Path
) -> None:
    pages = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue", "green", "white")]
    if name == "thumbnail-first.tif":
        pages[0].encoderinfo = {"tiffinfo": {254: 1}}
    if name == "single.tif":
        del pages[1:]
    pages[0].save(pictures / name, save_all=True, append_images=pages[1:])
    _, err, _ = world(tmp_path).talk(f"/image {name}")
    assert f"[1] {name}, 8x6 landscape{part}, 10 tokens" in err


def test_a_picture_elsewhere_in_the_home_folder_is_named_from_there(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "b.png").write_bytes((pictures / "b.png").read_bytes())
    _, err, _ = world(tmp_path).talk(f"/image '{tmp_path}/b.png'")
    assert err.startswith("[1] ~/b.png, 10x4 landscape")


def test_of_several_pictures_all_are_attached_or_none(tmp_path: Path, pictures: Path) -> None:
    (pictures / "broken.png").write_text("hello")
    here = world(tmp_path)
    _, err, _ = here.talk("/image a.png broken.png")
    assert here.chat.turns.staged == []
    assert "`broken.png`: it is text; none of the 2 pictures is attached" in " ".join(err.split())


@pytest.mark.parametrize("text", ["What is 3/4?", "mail me@x.org", "see /etc/passwd", "a @ b"])
def test_a_text_that_names_no_picture_is_left_alone(tmp_path: Path, text: str) -> None:
    here = world(tmp_path, "Yes.")
    here.talk(text)
    assert here.engine.requests[0].messages[0].text == text


def test_a_number_is_the_place_of_a_picture_and_an_unknown_one_is_refused(
    tmp_path: Path, pictures: Path
) -> None:
    here = world(tmp_path, "One.", "Two.")
    _, err, _ = here.talk("/image a.png b.png", "What is in [2]?", "@a.png And [9]?", "So [1]?")
    first = here.engine.requests[0].messages[0].parts
    assert [isinstance(part, str) for part in first] == [False, True, False, True]
    assert first[1::2] == ("What is in ", "?")
    assert [part.digest for part in here.engine.requests[0].attachments] == [
        picture.digest for picture in here.chat.conversation.pictures
    ]
    assert err.count("error: the prompt has `[9]`, and there is no picture 9\n") == 1
    # The picture of the refused line is not staged any more.
    assert len(here.engine.requests[1].attachments) == 2
    assert here.engine.requests[1].messages[-1].text == "So the first image?"


def test_a_picture_on_the_clipboard_is_attached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.new("RGB", (9, 7), "red")
    image.save(tmp_path / "copied.png")
    install_xclip(f"/bin/cat '{tmp_path}/copied.png'", tmp_path, monkeypatch)
    here = world(tmp_path, "Red.")
    _, err, _ = here.talk("/paste", "What?")
    assert "[1] clipboard, 9x7 landscape, 10 tokens" in err
    (attachment,) = here.engine.requests[0].attachments
    assert Image.open(attachment.source).tobytes() == image.tobytes()


def test_a_picture_is_fetched_once(tmp_path: Path, pictures: Path) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=str(pictures))
    asked: list[str] = []

    class Server(ThreadingHTTPServer):
        def process_request(self, request: Any, client_address: Any) -> None:
            asked.append("a picture")
            super().process_request(request, client_address)

    here = ChatWorld(tmp_path, FakeEngine("Red.", "Yes."), offline=False)
    with Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/a.png"
        _, err, _ = here.talk(f"/image {address}", "What?", "Sure?")
        server.shutdown()
    assert f"[1] {address}, 8x6 landscape" in err
    assert asked == ["a picture"]
    assert len(here.engine.requests[1].attachments) == 1


def test_a_model_that_sees_the_last_picture_only_is_shown_the_one_it_is_asked_about(
    tmp_path: Path, pictures: Path
) -> None:
    here = world(tmp_path, "A.", "B.", "C.", spec=replace(FAKE_SPEC, family="idefics"))
    here.talk("@a.png What?", "@b.png And?", "What was in [1]?")
    digests = [Path(a.source).stem for a in here.engine.requests[2].attachments]
    first, second = (picture.digest for picture in here.chat.conversation.pictures)
    assert digests == [first, second, first]
    assert here.engine.requests[2].messages[-1].parts[-1] == "What was in the image?"
