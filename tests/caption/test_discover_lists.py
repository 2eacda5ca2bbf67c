"""The pictures of lists, and their paths in an output that keeps the tree."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest

from idefics_cli.caption.inputs.discover import discover, inner_path, tree_path
from idefics_cli.caption.inputs.lists import parse_list
from idefics_cli.core.errors import ImageError, UsageError
from tests.support.photo_folder import touch

linux_names = pytest.mark.skipif(os.name == "nt", reason="such a name is not allowed here")


def keys(*arguments: str, recursive: bool = False) -> list[str]:
    return [picture.key for picture in discover(arguments, recursive=recursive).pictures]


def error(*arguments: str, recursive: bool = False) -> ImageError:
    with pytest.raises(ImageError) as caught:
        discover(arguments, recursive=recursive)
    return caught.value


def relatives(*arguments: str, recursive: bool = True) -> dict[str, str]:
    listing = discover(arguments, recursive=recursive, follow_links=True)
    return {p.key: p.relative for p in listing.pictures}


def listed(data: str, source: str = "-", *arguments: str) -> list[tuple[str, str]]:
    lists = [parse_list(data.encode("utf-8", "surrogateescape"), source)]
    return [(p.key, p.relative) for p in discover(arguments, lists=lists).pictures]


@pytest.mark.usefixtures("here")
class TestTrees:
    """Where a picture lies in an output that keeps the tree."""

    @pytest.mark.parametrize("folder", ["p", "./p/", "p//", "p/.", "p/sub/..", "../here/p"])
    def test_a_picture_of_a_folder_keeps_its_path_below_it(self, folder: str) -> None:
        touch("p/a.jpg", "p/sub/.x.d/deep/b.jpg", "p/sub/c.jpg")
        os.symlink("../elsewhere", "p/link")
        touch("elsewhere/d.jpg")

        assert list(relatives(folder).values()) == ["a.jpg", "link/d.jpg", "sub/c.jpg"]
        assert list(relatives(os.path.abspath(folder)).values()) == list(relatives(folder).values())

    def test_the_current_and_the_upper_folder_are_folders_too(self) -> None:
        touch("a.jpg", "p/b.jpg", "q/c.jpg")

        assert relatives(".") == {"a.jpg": "a.jpg", "p/b.jpg": "p/b.jpg", "q/c.jpg": "q/c.jpg"}
        os.chdir("q")
        assert relatives("../p") == {"../p/b.jpg": "b.jpg"}
        assert relatives("..") == {
            "../a.jpg": "a.jpg",
            "../p/b.jpg": "p/b.jpg",
            "../q/c.jpg": "q/c.jpg",
        }

    def test_a_file_that_was_named_has_its_bare_name_and_an_address_none(self) -> None:
        touch("p/a.jpg")

        for path in ("p/a.jpg", "./p/../p/a.jpg", os.path.abspath("p/a.jpg")):
            assert list(relatives(path).values()) == ["a.jpg"]
        assert relatives("https://x.org/a/b.jpg") == {"https://x.org/a/b.jpg": ""}

    def test_a_glob_keeps_the_tree_below_its_first_wildcard(self) -> None:
        touch("p/2023/a.jpg", "p/2024/sub/b.jpg", "p/2024/c.jpg")

        tree = ["2023/a.jpg", "2024/c.jpg", "2024/sub/b.jpg"]
        for pattern in ("p/**", "p/20*", "./p/20*", "p/**/*.jpg", os.path.abspath("p/20*")):
            assert list(relatives(pattern).values()) == tree
        assert list(relatives("*/2023/*.jpg").values()) == ["p/2023/a.jpg"]

    @pytest.mark.parametrize(
        ("path", "tree"),
        [
            ("p/a.jpg", "p/a.jpg"),
            ("./p//./a.jpg", "p/a.jpg"),
            ("../../p/a.jpg", "p/a.jpg"),
            ("p/../../q/a.jpg", "q/a.jpg"),
            ("/data/p/a.jpg", "data/p/a.jpg"),
            ("/data/../../a.jpg", "a.jpg"),
            ("...jpg", "...jpg"),
            ("p/.hidden/..jpg", "p/.hidden/..jpg"),
        ],
    )
    def test_no_path_leads_out_of_the_tree(self, path: str, tree: str) -> None:
        assert tree_path(path) == inner_path(PurePosixPath(path)) == tree

    @pytest.mark.parametrize(
        ("path", "tree"),
        [
            (r"C:\p\a.jpg", "p/a.jpg"),
            ("C:/p/a.jpg", "p/a.jpg"),
            (r"C:p\a.jpg", "p/a.jpg"),
            (r"\\server\share\p\a.jpg", "p/a.jpg"),
            (r"..\..\p\a.jpg", "p/a.jpg"),
            (r"p\..\..\C\a.jpg", "C/a.jpg"),
            (r"p\a.jpg", "p/a.jpg"),
        ],
    )
    def test_nor_does_one_of_windows(self, path: str, tree: str) -> None:
        assert inner_path(PureWindowsPath(path)) == tree


@pytest.mark.usefixtures("here")
class TestLists:
    def test_paths_are_from_here_and_those_of_a_table_from_its_folder(self) -> None:
        touch("a.jpg", "data/a.jpg", "data/sub/b.jpg")
        table = "\n".join(f'{{"file_name": "{name}"}}' for name in ("a.jpg", "sub/b.jpg"))

        assert listed("a.jpg\ndata/sub/b.jpg", "data/list.txt") == [
            ("a.jpg", "a.jpg"),
            ("data/sub/b.jpg", "data/sub/b.jpg"),
        ]
        assert listed(table, "data/metadata.jsonl") == [
            ("data/a.jpg", "a.jpg"),
            ("data/sub/b.jpg", "sub/b.jpg"),
        ]
        os.chdir("data")
        assert (
            listed(table)
            == listed(table, "metadata.jsonl")
            == [
                ("a.jpg", "a.jpg"),
                ("sub/b.jpg", "sub/b.jpg"),
            ]
        )

    def test_where_the_first_that_is_anywhere_is_decides_for_the_whole_list(self) -> None:
        touch("data/b.jpg", "a.jpg", "data/a.jpg")

        assert [key for key, _ in listed("x.jpg\nb.jpg\na.jpg", "data/l.txt")] == [
            "data/x.jpg",
            "data/b.jpg",
            "data/a.jpg",
        ]
        rows = "path,n\nx.jpg,0\ndata/b.jpg,1\na.jpg,2\n"
        assert [key for key, _ in listed(rows, "data/l.csv")] == ["x.jpg", "data/b.jpg", "a.jpg"]

    def test_what_is_found_in_a_list_is_what_is_found_without(self) -> None:
        touch("p/a.jpg", "p/sub/b.jpg", "p/[1].jpg")
        names = ["p/a.jpg", os.path.abspath("p/sub/b.jpg"), "https://x.org/a.jpg", "p/nosuch.jpg"]

        assert [key for key, _ in listed("\n".join(names))] == keys(*names)
        assert [key for key, _ in listed("p\np/sub\n")] == keys("p", "p/sub")
        assert listed("p/[1].jpg") == [("p/[1].jpg", "p/[1].jpg")]

    def test_a_picture_is_listed_once_with_the_columns_of_its_row(self) -> None:
        touch("p/a.jpg", "p/b.jpg")
        lists = [parse_list(b"path,x\np/b.jpg,1\n./p/b.jpg,1\n", "l.csv")]

        with pytest.raises(UsageError) as caught:
            discover(["p"], lists=lists)
        assert (
            str(caught.value)
            == "`l.csv`, line 3: other columns for `p/b.jpg` than in `l.csv`, line 2"
        )
        listing = discover(["p"], lists=[parse_list(b"path,x\np/b.jpg,1\np/b.jpg,1\n", "l.csv")])
        assert [(p.key, p.columns) for p in listing.pictures] == [
            ("p/a.jpg", ()),
            ("p/b.jpg", (("path", "p/b.jpg"), ("x", "1"))),
        ]
        assert listing.columns == ("path", "x")

    def test_only_columns_to_keep_are_kept_and_only_they_must_agree(self) -> None:
        touch("a.jpg")
        lists = [parse_list(b"path,x,y\na.jpg,1,2\na.jpg,1,3\n", "l.csv")]

        (picture,) = discover([], lists=lists, fields={"x", "z"}).pictures
        assert picture.columns == (("x", "1"),)
        with pytest.raises(UsageError, match="other columns"):
            discover([], lists=lists, fields={"y"})

    def test_an_empty_list_is_a_problem_like_an_empty_folder(self) -> None:
        touch("a.jpg")

        listing = discover(["a.jpg"], lists=[parse_list(b"\n", "l.txt")])
        assert [str(problem) for problem in listing.problems] == ["no pictures in the list `l.txt`"]
        with pytest.raises(ImageError, match="no pictures in the list"):
            discover([], lists=[parse_list(b"")])

    def test_a_tilde_is_the_home_folder_unless_a_file_has_it_in_its_name(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path / "me"))
        monkeypatch.setenv("USERPROFILE", str(tmp_path / "me"))
        touch(str(tmp_path / "me" / "a.jpg"))
        home = (tmp_path / "me" / "a.jpg").as_posix()

        assert [key for key, _ in listed("~/a.jpg")] == [home]
        touch("~/a.jpg")
        lists = [parse_list(b"~/a.jpg")]
        for listing in (discover([], lists=lists), discover(["."], recursive=True)):
            (picture,) = listing.pictures
            assert (picture.key, picture.relative) == ("~/a.jpg", "~/a.jpg")
            # The image loader would look into the home folder.
            assert picture.attachment.source == os.path.join(".", "~/a.jpg")
