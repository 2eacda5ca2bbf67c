"""Arguments become a work list: each picture once, in a stable order, with a familiar key."""

from __future__ import annotations

import errno
import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from idefics_cli.caption.inputs.discover import discover
from idefics_cli.core.errors import ImageError
from tests.support.photo_folder import touch

linux_names = pytest.mark.skipif(os.name == "nt", reason="such a name is not allowed here")


def keys(*arguments: str, recursive: bool = False, follow_links: bool = False) -> list[str]:
    listing = discover(arguments, recursive=recursive, follow_links=follow_links)
    return [picture.key for picture in listing.pictures]


def sources(*arguments: str) -> list[str]:
    return [picture.attachment.source for picture in discover(arguments).pictures]


def error(*arguments: str, recursive: bool = False) -> ImageError:
    with pytest.raises(ImageError) as caught:
        discover(arguments, recursive=recursive)
    return caught.value


@pytest.mark.usefixtures("here")
class TestFiles:
    def test_a_named_file_is_taken_whatever_it_is_called(self) -> None:
        touch("notes.txt", "scan")

        assert keys("notes.txt", "scan") == ["notes.txt", "scan"]

    def test_the_key_is_the_path_as_typed_but_for_dots_and_double_slashes(self) -> None:
        touch("photos/a.jpg")

        assert keys("./photos//a.jpg") == ["photos/a.jpg"]
        assert keys("../here/photos/a.jpg") == ["../here/photos/a.jpg"]
        assert keys(os.path.abspath("photos/a.jpg")) == [Path("photos/a.jpg").resolve().as_posix()]

    def test_the_order_of_arguments_is_kept(self) -> None:
        touch("b.jpg", "a.jpg", "folder/z.jpg", "folder/c.jpg")

        assert keys("b.jpg", "folder", "a.jpg") == [
            "b.jpg",
            "folder/c.jpg",
            "folder/z.jpg",
            "a.jpg",
        ]

    def test_a_picture_that_is_reached_twice_is_listed_once(self) -> None:
        touch("photos/a.jpg", "photos/b.jpg")

        absolute = os.path.abspath("photos/a.jpg")
        assert keys("photos/b.jpg", "photos", "./photos/", "photos/*.jpg", absolute) == [
            "photos/b.jpg",
            "photos/a.jpg",
        ]

    def test_two_names_of_one_file_are_two_pictures(self) -> None:
        touch("a.jpg")
        os.symlink("a.jpg", "link.jpg")
        os.link("a.jpg", "hard.jpg")

        assert keys(".") == ["a.jpg", "hard.jpg", "link.jpg"]

    def test_a_missing_file_among_others_is_left_to_fail_on_its_own(self) -> None:
        touch("a.jpg")

        assert keys("missing.jpg", "a.jpg") == ["missing.jpg", "a.jpg"]

    def test_only_missing_files_are_an_error_that_names_the_first(self) -> None:
        caught = error("one.jpg", "two.jpg")

        assert str(caught) == "no such file: `one.jpg` (and 1 more)"
        assert caught.kind == "missing"

    def test_no_argument_is_an_error(self) -> None:
        assert str(error()) == "nothing to caption"

    def test_a_tilde_that_no_shell_expanded_is_the_home_folder(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path / "me"))
        monkeypatch.setenv("USERPROFILE", str(tmp_path / "me"))
        touch(str(tmp_path / "me" / "a.jpg"))

        assert keys("~/a.jpg") == [(tmp_path / "me" / "a.jpg").as_posix()]


@pytest.mark.usefixtures("here")
class TestOtherSources:
    def test_urls_stdin_and_uris_are_taken_as_they_are(self) -> None:
        given = ["https://example.org/a.jpg?size=[big]", "-", "file:///tmp/a.png", "clipboard:"]

        assert keys(*given) == given
        assert sources(*given) == given

    def test_a_url_given_twice_is_listed_once(self) -> None:
        assert keys("http://example.org/a", "http://example.org/a") == ["http://example.org/a"]

    def test_the_key_of_a_data_uri_is_short_and_differs_with_the_data(self) -> None:
        one, two = (f"data:image/png;base64,{letter * 4000}" for letter in "AB")

        first, second = keys(one, two, one)
        assert first.startswith("data:image/png;base64,sha256-")
        assert len(first) < 60
        assert first != second
        assert sources(one) == [one]

    @linux_names
    def test_files_that_are_named_like_uris_are_still_files(self) -> None:
        touch("-", "data:a.jpg", "http:/x.jpg")

        assert keys(".", recursive=True) == ["./data:a.jpg", "./http:/x.jpg"]
        assert keys("./-") == sources("./-") == ["./-"]
        assert keys("d*.jpg") == sources("d*.jpg") == ["./data:a.jpg"]


@pytest.mark.usefixtures("here")
class TestFolders:
    def test_only_the_top_level_is_taken_without_recursion(self) -> None:
        touch("photos/b.jpg", "photos/a.PNG", "photos/sub/c.jpg")

        assert keys("photos") == ["photos/a.PNG", "photos/b.jpg"]
        assert keys("photos/", recursive=True) == [
            "photos/a.PNG",
            "photos/b.jpg",
            "photos/sub/c.jpg",
        ]

    def test_the_current_folder_gives_bare_names(self) -> None:
        touch("a.jpg", "sub/b.jpg")

        assert keys(".", recursive=True) == ["a.jpg", "sub/b.jpg"]

    def test_hidden_files_and_folders_are_skipped_unless_named(self) -> None:
        touch("photos/a.jpg", "photos/._a.jpg", "photos/.thumbs/b.jpg", ".hidden/c.jpg")

        assert keys("photos", recursive=True) == ["photos/a.jpg"]
        assert keys(".hidden", "photos/._a.jpg") == [".hidden/c.jpg", "photos/._a.jpg"]

    def test_files_that_begin_like_an_image_are_taken_without_an_extension(self) -> None:
        os.mkdir("photos")
        formats = ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "ICO")
        for format_ in formats:
            Image.new("RGB", (16, 16)).save(f"photos/{format_}.download", format_)
        Path("photos/notes").write_text("MM and II and BM are letters, RIFF too", "utf-8")
        Path("photos/BM.txt").write_text("BMW has four letters less one", "utf-8")
        Path("photos/empty").touch()

        assert keys("photos") == sorted(f"photos/{format_}.download" for format_ in formats)

    def test_camera_raw_files_are_no_pictures_though_they_begin_as_tiff_does(self) -> None:
        os.mkdir("photos")
        for name in ("a.dng", "b.tif"):
            Image.new("RGB", (4, 4)).save(f"photos/{name}", "TIFF")

        assert keys("photos") == ["photos/b.tif"]

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
    def test_pipes_and_folders_named_as_pictures_are_skipped(self) -> None:
        touch("photos/a.jpg", "photos/folder.jpg/notes.txt")
        os.mkfifo("photos/pipe.jpg")

        assert keys("photos") == ["photos/a.jpg"]

    def test_a_broken_link_is_listed_so_that_it_is_told(self) -> None:
        touch("photos/a.jpg")
        os.symlink("nowhere", "photos/broken.jpg")
        os.symlink("self.jpg", "photos/self.jpg")

        assert keys("photos") == ["photos/a.jpg", "photos/broken.jpg", "photos/self.jpg"]

    def test_a_loop_of_links_is_survived(self) -> None:
        touch("photos/a.jpg", "photos/sub/b.jpg")
        os.symlink("..", "photos/sub/up")
        os.symlink(".", "photos/self")

        assert keys("photos", recursive=True) == ["photos/a.jpg", "photos/sub/b.jpg"]

    def test_many_links_between_folders_do_not_multiply(self) -> None:
        names = [f"f{number:02}" for number in range(20)]
        for name in names:
            touch(f"all/{name}/a.jpg")
            for other in names:
                os.symlink(f"../{other}", f"all/{name}/{other}")

        expected = [f"all/{name}/a.jpg" for name in names]
        assert keys("all", recursive=True) == expected
        assert keys("all/**/*.jpg") == expected

    def test_a_linked_folder_is_entered_and_its_real_path_preferred(self) -> None:
        touch("photos/z/a.jpg", "elsewhere/b.jpg")
        os.symlink("z", "photos/a-link-to-z")
        os.symlink("../elsewhere", "photos/linked")

        assert keys("photos", recursive=True, follow_links=True) == [
            "photos/linked/b.jpg",
            "photos/z/a.jpg",
        ]

    def test_a_link_out_of_the_folder_is_followed_only_if_that_is_asked_for(self) -> None:
        touch("photos/z/a.jpg", "elsewhere/b.jpg", "photos-2/c.jpg")
        os.symlink("z", "photos/a-link-to-z")
        os.symlink("../elsewhere", "photos/linked")
        os.symlink("../photos-2", "photos/second")
        os.symlink("photos", "by-link")

        listing = discover(["photos"], recursive=True)

        assert [picture.key for picture in listing.pictures] == ["photos/z/a.jpg"]
        assert listing.notes == (
            "left out the link `photos/linked` and 1 more to folders outside of `photos`;"
            " `--follow-links` includes them",
        )
        assert listing.problems == ()
        assert keys("photos/**/*.jpg") == ["photos/z/a.jpg"]
        assert keys("photos/**/*.jpg", follow_links=True)[0] == "photos/linked/b.jpg"
        assert keys("photos/linked") == ["photos/linked/b.jpg"]
        assert keys("by-link", recursive=True) == ["by-link/z/a.jpg"]

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
    def test_links_to_pipes_and_devices_are_skipped_without_waiting(self) -> None:
        touch("photos/a.jpg")
        os.mkfifo("pipe")
        for name in ("notes", "b.jpg"):
            os.symlink("../pipe", f"photos/{name}")
        os.symlink("/dev/zero", "photos/zero")
        os.symlink("/dev/zero", "photos/zero.png")

        assert keys("photos") == ["photos/a.jpg"]

    def test_the_files_of_a_folder_stay_together(self) -> None:
        touch("p/a/z.jpg", "p/a-b/c.jpg", "p/a.jpg", "p/B.jpg")

        assert keys("p", recursive=True) == ["p/B.jpg", "p/a/z.jpg", "p/a-b/c.jpg", "p/a.jpg"]

    def test_a_folder_without_pictures_is_an_error_with_the_way_out(self) -> None:
        touch("photos/notes.txt", "photos/sub/a.jpg")

        caught = error("photos/")
        assert str(caught) == "no pictures in folder `photos/`"
        assert caught.hint == "`-r` also looks into its sub-folders"
        touch("empty/notes.txt")
        assert error("empty", recursive=True).hint is None

    @pytest.mark.parametrize("deeper", ["a.jpg", "b/a.jpg", "shard.tar"])
    def test_the_way_out_is_named_only_if_there_are_pictures_below(self, deeper: str) -> None:
        touch("p/notes.txt", "p/.hidden/a.jpg", "p/sub/notes.txt", "p/sub/.a.jpg")
        assert error("p").hint is None
        touch(f"p/sub/{deeper}")
        assert error("p").hint == "`-r` also looks into its sub-folders"

    def test_a_tree_deeper_than_the_calls_that_python_allows_is_searched(self) -> None:
        Path("p", *"a" * 150).mkdir(parents=True)
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(len(inspect.stack()) + 100)
        try:
            assert error("p").hint is None
        finally:
            sys.setrecursionlimit(limit)

    def test_an_empty_folder_among_others_is_a_problem_and_the_rest_is_listed(self) -> None:
        touch("photos/a.jpg", "empty/notes.txt")

        listing = discover(["empty", "photos", "*.gif"])
        assert [picture.key for picture in listing.pictures] == ["photos/a.jpg"]
        assert [str(problem) for problem in listing.problems] == [
            "no pictures in folder `empty`",
            "no picture matches `*.gif`",
        ]

    def test_a_folder_that_cannot_be_listed_is_a_problem(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        touch("photos/a.jpg", "photos/secret/b.jpg")
        list_folder = os.scandir

        def scandir(path: str) -> object:
            if path == "photos/secret":
                raise PermissionError(errno.EACCES, "Permission denied", path)
            return list_folder(path)

        # The folder is not made unreadable by its mode, because the tests may run as root, who can
        # list every folder.
        monkeypatch.setattr(os, "scandir", scandir)
        listing = discover(["photos"], recursive=True)
        assert [picture.key for picture in listing.pictures] == ["photos/a.jpg"]
        assert [str(problem) for problem in listing.problems] == [
            "cannot list folder `photos/secret`: Permission denied"
        ]


def expanded(pattern: str) -> list[str]:
    """Return the paths to which bash expands *pattern*, sorted like ours."""
    script = f"shopt -s globstar nullglob; printf '%s\\0' {pattern}"
    bash = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    return sorted(filter(None, os.fsdecode(bash.stdout).split("\0")), key=lambda p: Path(p).parts)


@pytest.mark.usefixtures("here")
class TestGlobs:
    TREE: Sequence[str] = (
        "photos/a.jpg",
        "photos/b.jpg",
        "photos/c.png",
        "photos/.hidden.jpg",
        "photos/2023/a.jpg",
        "photos/2024/deep/b.jpg",
        "photos/2024/notes.txt",
        "photos/.cache/a.jpg",
    )

    @pytest.mark.skipif(shutil.which("bash") is None, reason="compares with bash")
    @pytest.mark.parametrize(
        "pattern",
        [
            "photos/*.jpg",
            "photos/[ab].*",
            "photos/?.png",
            "photos/20*/a.jpg",
            "*/*.jpg",
            "photos/**/*.jpg",
            "**/b.jpg",
            "photos/**/deep/*",
            "./photos/*.jpg",
            "photos/.h*",
        ],
    )
    def test_a_glob_means_what_the_shell_makes_of_it(self, pattern: str) -> None:
        touch(*self.TREE)

        assert keys(pattern) == keys(*expanded(pattern))

    def test_an_absolute_glob_gives_absolute_keys(self, here: Path) -> None:
        touch("photos/a.jpg")

        assert keys(f"{here}/photos/*.jpg") == [f"{here.as_posix()}/photos/a.jpg"]

    def test_two_stars_at_the_end_are_every_picture_below(self) -> None:
        touch(*self.TREE)

        assert keys("photos/**") == keys("photos", recursive=True)
        assert keys("**") == keys(".", recursive=True)

    def test_a_folder_that_matches_is_listed_as_if_it_were_named(self) -> None:
        touch("photos/2023/a.jpg", "photos/2024/sub/b.jpg", "photos/2024/c.jpg")

        assert keys("photos/20*") == keys("photos/2023", "photos/2024")
        assert keys("photos/20*", recursive=True) == [
            "photos/2023/a.jpg",
            "photos/2024/c.jpg",
            "photos/2024/sub/b.jpg",
        ]

    def test_a_loop_of_links_under_two_stars_is_survived(self) -> None:
        touch("photos/a.jpg", "photos/sub/b.jpg")
        os.symlink("..", "photos/sub/up")
        os.symlink("..", "photos/sub/up2")

        assert keys("photos/**/*.jpg") == ["photos/a.jpg", "photos/sub/b.jpg"]

    @linux_names
    def test_a_file_may_have_a_name_that_looks_like_a_glob(self) -> None:
        touch("what?.jpg", "a[1].jpg", "a1.jpg", "whats.jpg")

        assert keys("what?.jpg", "a[1].jpg") == ["what?.jpg", "a[1].jpg"]

    def test_a_glob_without_match_is_an_error_with_the_way_out(self) -> None:
        touch("photos/sub/a.jpg")

        caught = error("photos/*.jpg")
        assert str(caught) == "no picture matches `photos/*.jpg`"
        assert caught.hint is not None
        assert "-r" in caught.hint
        assert error("photos/**/*.png").hint is None


@linux_names
@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "name",
    [
        b"new\nline.jpg",
        b"tab\t.jpg",
        b"\xff\xfe.jpg",
        b"\x1b[31m.jpg",
        b"-r.jpg",
        b" .jpg",
        b"\\.jpg",
    ],
)
def test_a_file_of_any_name_is_found_in_its_folder_and_can_be_opened(name: bytes) -> None:
    os.mkdir("photos")
    Path(os.fsdecode(b"photos/" + name)).write_bytes(b"content")

    (picture,) = discover(["photos"]).pictures
    assert os.fsencode(picture.key) == b"photos/" + name
    assert Path(picture.attachment.source).read_bytes() == b"content"


@pytest.mark.usefixtures("here")
def test_a_listing_of_many_files_is_quick_and_the_same_each_time() -> None:
    os.mkdir("photos")
    for number in range(5000):
        touch(f"photos/{number * 7919 % 5000}.jpg")

    assert keys("photos") == keys("photos") == sorted(f"photos/{n}.jpg" for n in range(5000))
