"""Pictures that a line names: every terminal's quotes, addresses, patterns and plain names."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from pathlib import Path

import pytest
from PIL import Image

from idefics_cli.chat.commands.line import Line, expand_sources, read_line, split_words
from idefics_cli.chat.commands.words import escape_word
from idefics_cli.core.errors import ImageError
from tests.support.chat import world

# Names that people and cameras give.
NAMES = [
    "photo.png",
    "my dog.png",
    "Anna's photo.png",
    'a "quoted" name.png',
    "both ' and \".png",
    "cost $5 & more (1).png",
    "naïve café.png",
    "照片 1.png",
    "IMG [1].PNG",
    "what? really!.png",
    "back\\slash.png",
    "tab\there.png",
    "logo@2x.png",
    "~tilde.png",
]


def backslashes(path: str) -> str:
    """Quote as Terminal.app, iTerm2 and Ghostty do: a backslash before each special character."""
    return "".join(c if c.isalnum() or c in "/._-~@" or ord(c) > 127 else f"\\{c}" for c in path)


def single_quotes(path: str) -> str:
    """Quote as GNOME Terminal (`g_shell_quote`), Konsole (`KShell`) and foot do."""
    return "'" + path.replace("'", "'\\''") + "'"


def bash(path: str) -> str:
    """Quote as `printf %q` of bash does, which its completion uses."""
    command = ["bash", "-c", 'printf %q "$1"', "bash", path]
    return os.fsdecode(subprocess.run(command, check=True, capture_output=True).stdout)


def double_quotes(path: str) -> str:
    """Quote as wezterm does for POSIX shells (Rust's `shlex`)."""
    for character in '\\"$`':
        path = path.replace(character, f"\\{character}")
    return f'"{path}"'


def spaces_only(path: str) -> str:
    """Quote as wezterm does by default: only the spaces."""
    return path.replace(" ", "\\ ")


def address(path: str) -> str:
    """Quote as a file manager copies it."""
    return Path(path).as_uri()


TERMINALS = {
    "kitty": shlex.quote,
    "GNOME Terminal, Konsole and foot": single_quotes,
    "Terminal.app, iTerm2 and Ghostty": backslashes,
    "wezterm, Posix": double_quotes,
    "wezterm, SpacesOnly": spaces_only,
    "bash": bash,
    "a file manager": address,
    "our completion": escape_word,
}
UNQUOTED = {
    "wezterm, SpacesOnly": {
        "both ' and \".png",
        'a "quoted" name.png',
        "back\\slash.png",
        "tab\there.png",
    }
}


@pytest.fixture
def album(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a picture of each name."""
    folder = tmp_path / "album"
    folder.mkdir()
    for name in NAMES:
        Image.new("RGB", (4, 4)).save(folder / name, "PNG")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("terminal", TERMINALS)
@pytest.mark.parametrize("name", NAMES)
def test_a_picture_that_a_terminal_pastes_is_attached(
    terminal: str, name: str, album: Path
) -> None:
    if name in UNQUOTED.get(terminal, ()):
        pytest.skip("this terminal does not quote such a name")
    path = str(album / name)
    pasted = TERMINALS[terminal](path)
    for line, text in [
        (pasted, ""),
        (f"{pasted} ", ""),
        (f" {pasted} What is in it?", "What is in it?"),
        (f"What is in it? {pasted}", "What is in it?"),
        (f"{pasted}?", "?"),
        (f"@{pasted} What's this?", "What's this?"),
        (f"It's Anna's: {pasted}, isn't it?", "It's Anna's: , isn't it?"),
    ]:
        assert read_line(line) == Line(text, (path,)), line
    twice = read_line(f"{pasted} {pasted} Are they equal?")
    assert twice == Line("Are they equal?", (path, path))
    assert expand_sources(f"{pasted} {pasted}") == (path, path)
    assert split_words(f"{pasted} x")[1:] == ["x"]


@pytest.mark.parametrize("terminal", ["kitty", "GNOME Terminal, Konsole and foot"])
def test_two_names_without_a_blank_are_two_pictures(terminal: str, album: Path) -> None:
    quote = TERMINALS[terminal]
    paths = (str(album / "my dog.png"), str(album / "照片 1.png"))
    assert read_line("".join(map(quote, paths)) + " Equal?") == Line("Equal?", paths)


@pytest.mark.parametrize(
    ("line", "text", "source"),
    [
        # Terminals that paste a name as it is (Alacritty, Windows Terminal without spaces).
        ("{f}/my dog.png", "", "{f}/my dog.png"),
        ("{f}/my dog.png What is it?", "What is it?", "{f}/my dog.png"),
        ("What is it? {f}/my dog.png", "What is it?", "{f}/my dog.png"),
        ("my dog.png", "", "my dog.png"),
        ("@my dog.png What?", "What?", "my dog.png"),
        # Plain names, with punctuation around them.
        ("photo.png", "", "photo.png"),
        ("./photo.png What?", "What?", "./photo.png"),
        ("What is in photo.png?", "What is in ?", "photo.png"),
        ("(see photo.png)", "(see )", "photo.png"),
        ('What is in "photo.png"?', "What is in ?", "photo.png"),
        ("What is photo.png's colour?", "What is 's colour?", "photo.png"),
        ("{f}/photo.png是什么？", "是什么？", "{f}/photo.png"),  # noqa: RUF001 (Chinese)
        ("../album/photo.png hi", "hi", "../album/photo.png"),
        ("~/x.jpg hi", "hi", "{h}/x.jpg"),
        # There is no file of this name. It is refused later, and not asked as text.
        ("nothere.png", "", "nothere.png"),
        ("What is in nothere.JPG?", "What is in ?", "nothere.JPG"),
        ("a/b.png is it red?", "is it red?", "a/b.png"),
        ("clip.mp4 What happens?", "What happens?", "clip.mp4"),
        ("@clip.mp4", "", "clip.mp4"),
        # Windows.
        (r"C:\Users\me\cat.jpg What?", "What?", r"C:\Users\me\cat.jpg"),
        (r'"C:\Users\me\my cat.jpg" What?', "What?", r"C:\Users\me\my cat.jpg"),
        (r"'C:\Users\me\my cat.jpg' What?", "What?", r"C:\Users\me\my cat.jpg"),
        (r"@C:\x.png", "", r"C:\x.png"),
        (r"\\server\share\x.png What?", "What?", r"\\server\share\x.png"),
        (r'"\\server\share\my x.png"', "", r"\\server\share\my x.png"),
        ("C:/Users/me/cat.jpg", "", "C:/Users/me/cat.jpg"),
        # Addresses.
        ("https://x.org/cat.jpg What?", "What?", "https://x.org/cat.jpg"),
        ("What is in https://x.org/cat.jpg?", "What is in ?", "https://x.org/cat.jpg"),
        ("https://x.org/i?f=cat.jpg&w=9 What?", "What?", "https://x.org/i?f=cat.jpg&w=9"),
        ("https://picsum.photos/200 What?", "What?", "https://picsum.photos/200"),
        ("Compare https://x.org/a.png now", "Compare now", "https://x.org/a.png"),
        ("@https://x.org/a b", "b", "https://x.org/a"),
        ("data:image/png;base64,AAAA What?", "What?", "data:image/png;base64,AAAA"),
        ("file://localhost{f}/my%20dog.png hi", "hi", "{f}/my dog.png"),
        ("file:{f}/my%20dog.png hi", "hi", "{f}/my dog.png"),
        ("file://other/x.png hi", "hi", "file://other/x.png"),
    ],
)
def test_a_picture_is_found_however_it_is_named(
    line: str, text: str, source: str, album: Path
) -> None:
    def full(word: str) -> str:
        return word.replace("{f}", str(album)).replace("{h}", os.path.expanduser("~"))

    assert read_line(full(line)) == Line(text, (full(source),))


@pytest.mark.parametrize(
    "line",
    [
        "what is 3/4?",
        "e.g. this one",
        "U.S.A. or U.K.?",
        "and/or",
        "it's 'so', isn't it?",
        'I said "no" and don\'t',
        "Is this a .png or a .jpg?",
        "TIFF/.tif or PNG?",
        "mail me@x.org or @anna",
        "a @ b",
        "see /etc/passwd",
        "yes / no",
        "1/2",
        "node.js and index.html",
        "v1.2.3",
        "C: or D:",
        "What does https://x.org/page say, if anything?",
        "the file name `photo.png` in it",
        "```\nopen('photo.png')\n```\nWhat does it do?",
        'it says <img src="nothere.png"> there',
        "5 * 3 ** 2",
        "what is *.png about?",
        "is it [1] or [2]?",
        "10:30 p.m.",
        "$5 or $'",
        "he said: '",
        '"""',
        "album",
        "\\ \\\\ '",
        "@",
        "...",
        "/",
    ],
)
def test_an_ordinary_sentence_is_left_alone(line: str, album: Path) -> None:
    assert read_line(line) == Line(line, ())


def test_patterns_and_folders_are_attached_or_refused(album: Path) -> None:
    (album / "more").mkdir()
    for name in ("a.png", "b.png"):
        (album / "more" / name).touch()
    both = ("more/a.png", "more/b.png")
    for line in ("@more/*.png Which?", "more/*.png Which?", "more/?.png Which?"):
        assert read_line(line) == Line("Which?", both)
    assert len(read_line("*.png").sources) == len(NAMES) - 1  # one has a suffix in capitals
    for line in ("@more", "@more What?", "more/", f"{album}/more", f"{album}/more What?"):
        with pytest.raises(ImageError, match="is a folder") as caught:
            read_line(line)
        assert "/*` attaches the pictures in it" in str(caught.value.hint)
    with pytest.raises(ImageError, match=r"no picture matches `more/\*\.gif`"):
        read_line("@more/*.gif")


def test_more_pictures_than_a_question_takes_are_refused(album: Path) -> None:
    for number in range(101):
        (album / f"{number}.gif").touch()
    with pytest.raises(ImageError, match="matches 101 pictures"):
        expand_sources("*.gif")


def test_a_picture_is_known_by_its_bytes_where_it_has_no_suffix(album: Path) -> None:
    Image.new("RGB", (4, 4)).save(album / "IMG_0001", "PNG")
    (album / "notes").write_text("hello")
    assert read_line(f"{album}/IMG_0001 What?") == Line("What?", (f"{album}/IMG_0001",))
    for line in (f"{album}/notes What?", "IMG_0001 What?"):
        assert read_line(line) == Line(line, ())


@pytest.mark.parametrize(
    "line",
    ["nothere.png What?", "./nothere.png", "https://x.org/cat.jpg What?", "@pictures/*.gif",
     r"C:\cat.jpg What?", "'/Anna'\\''s photo.png' What?", "clip.mp4 What?"],
)  # fmt: skip
def test_a_picture_that_cannot_be_attached_is_never_asked_as_text(
    tmp_path: Path, pictures: Path, line: str
) -> None:
    here = world(tmp_path, "Green.")
    out, err, _ = here.talk(line)
    assert out == ""
    assert err.startswith("error: ")
    assert here.engine.requests == []


def test_the_hint_of_a_guess_says_how_a_name_stays_text(tmp_path: Path, pictures: Path) -> None:
    here = world(tmp_path, "Yes.")
    _, err, _ = here.talk("Is it nothere.png?", "Is it `nothere.png`?")
    assert "a name in `backquotes` is text" in " ".join(err.split())
    assert here.questions == ["Is it `nothere.png`?"]


@pytest.mark.parametrize(
    "line",
    ["x" * 200_000, "'" * 50_000, '"' * 50_000, "$'" * 50_000, "\\" * 50_001, "a.png " * 3_000,
     "' " * 50_000, '"\\" ' * 30_000, "@" * 50_000, "日本語" * 30_000, "/" * 50_000,
     "(" * 50_000, "?" * 50_000, "''" * 50_000],
    ids=lambda line: line[:6],
)  # fmt: skip
def test_a_long_line_is_read_in_linear_time(line: str, album: Path) -> None:
    begun = time.process_time()
    read_line(line)
    split_words(line)
    assert time.process_time() - begun < 3
