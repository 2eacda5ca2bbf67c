"""A member of a tar archive is read like a file, however odd or damaged the archive is."""

from __future__ import annotations

import gzip
import os
import subprocess
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from idefics_cli.core.errors import ImageError
from idefics_cli.images.tars import index_tar, open_member, split_member
from tests.support.sources import PICTURE, is_the_picture, load, load_error
from tests.support.tars import make_tar

LONG = "d/" * 60 + "n" * 150 + ".png"


def names(path: Path) -> list[str]:
    return list(index_tar(str(path)).members)


def content(path: str) -> bytes:
    with open_member(path) as stream:
        return stream.read()


def faults(path: Path) -> str:
    return "; ".join(index_tar(str(path)).faults)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_picture_in_an_archive_is_opened_by_its_path(form: int, tmp_path: Path) -> None:
    long = "n" * 90 + ".png" if form == tarfile.USTAR_FORMAT else LONG
    long = f"{'d' * 90}/{long}"
    members = {"x/a.png": PICTURE, long: PICTURE, "é.png": PICTURE, "b": b"b"}
    tar = make_tar(tmp_path / "a.tar", members, form=form)

    index = index_tar(str(tar)).members
    assert list(index) == list(members)
    for name in ("x/a.png", long, "é.png"):
        with open_member(f"{tar}/{name}", (index[name].offset, index[name].size)) as stream:
            assert stream.read() == PICTURE
    for name in ("x/a.png", long, "./x//a.png"):
        assert is_the_picture(load(f"{tar}/{name}"))
    assert is_the_picture(load((tar / "x" / "a.png").as_uri()))
    assert content(f"{tar}/b") == b"b"
    member = index_tar(str(tar)).members[long]
    with open_member(f"{tar}/{long}", (member.offset, member.size)) as stream:
        assert stream.seek(-8, os.SEEK_END) == len(PICTURE) - 8
        assert stream.read(100) == PICTURE[-8:]
        assert stream.read() == b""


def test_files_of_gnu_tar_are_read(tmp_path: Path) -> None:
    (tmp_path / "in" / "d").mkdir(parents=True)
    (tmp_path / "in" / "d" / "a.png").write_bytes(PICTURE)
    (tmp_path / "in" / "b.png").symlink_to("d/a.png")
    os.link(tmp_path / "in" / "d" / "a.png", tmp_path / "in" / "d" / "c.png")
    with (tmp_path / "in" / "s.png").open("wb") as file:
        file.truncate(2**20)
    tar = tmp_path / "a.tar"
    subprocess.run(["tar", "--sparse", "-C", tmp_path / "in", "-cf", tar, "."], check=True)

    index = index_tar(str(tar))
    assert sorted(index.members) == ["b.png", "d/a.png", "d/c.png"]
    assert [is_the_picture(load(f"{tar}/{name}")) for name in index.members] == [True] * 3
    assert index.unreadable == (("s.png", "it is stored as a sparse file"),)
    assert index.faults == ()


def test_links_that_lead_elsewhere_are_not_followed(tmp_path: Path) -> None:
    links = {"a.png": (tarfile.SYMTYPE, "/etc/passwd"), "b.png": (tarfile.LNKTYPE, "../../etc")}
    links |= {"c.png": (tarfile.SYMTYPE, "c.png"), "fifo.png": (tarfile.FIFOTYPE, "")}
    index = index_tar(str(make_tar(tmp_path / "a.tar", {"x": b"x"}, links=links)))

    assert list(index.members) == ["x"]
    assert dict(index.unreadable) == {
        **dict.fromkeys(("a.png", "b.png", "c.png"), "it is a link to what is not in the archive"),
        "fifo.png": "it is no file",
    }


def test_the_last_of_several_members_counts_and_no_name_leads_out(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "a.tar", {"a": b"1", "../../a": b"2", "/x/../b": b"3", "./a/": b"4"})
    index = index_tar(str(tar))

    assert (list(index.members), index.repeated) == (["x/b", "a"], 2)
    assert content(f"{tar}/a") == b"4"


def test_a_torn_archive_says_so_and_keeps_what_is_whole(tmp_path: Path) -> None:
    whole = make_tar(tmp_path / "a.tar", {"a.png": PICTURE, "b.png": b"b" * 3000}).read_bytes()
    torn, two = tmp_path / "torn.tar", tarfile.BLOCKSIZE + -(-len(PICTURE) // 512) * 512
    for size, kept, fault in (
        (two + 300, ["a.png"], "ends in the middle of a member, after 1 member"),
        (two + 600, ["a.png"], "ends in the middle of a member, after 2 members"),
        (two + 512 + 3072, ["a.png", "b.png"], "has no mark at its end: perhaps it is not whole"),
        (100, [], None),
        (0, [], None),
    ):
        torn.write_bytes(whole[:size])
        if fault is None:
            assert "is not a tar archive" in str(load_error(f"{torn}/a.png"))
            continue
        assert (names(torn), faults(torn)) == (kept, fault)
    assert index_tar(str(tmp_path / "a.tar")).faults == ()


def test_damage_in_the_middle_is_not_the_end(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "a.tar", {f"{n}.png": b"x" * 512 for n in range(5)})
    data = bytearray(tar.read_bytes())
    data[2 * 1024 : 2 * 1024 + 100] = b"\xff" * 100
    tar.write_bytes(data)

    assert names(tar) == ["0.png", "1.png"]
    assert faults(tar) == "is damaged at byte 2048, after 2 members: what follows cannot be read"

    joined = tmp_path / "joined.tar"
    first, second = (make_tar(tar, {name: b"x"}).read_bytes() for name in "ab")
    joined.write_bytes(first + second)
    assert names(joined) == ["a"]
    assert faults(joined).startswith("has more after its end mark, which is not read")


def test_a_header_cannot_ask_for_much_memory_or_time(tmp_path: Path) -> None:
    tar = tmp_path / "a.tar"
    good = tarfile.TarInfo("a.png").tobuf()
    for kind, size in ((tarfile.XHDTYPE, 2**33), (tarfile.GNUTYPE_LONGNAME, 2**31), (b"L", -512)):
        info = tarfile.TarInfo("x")
        info.type, info.size = kind, size
        tar.write_bytes(good + info.tobuf(tarfile.GNU_FORMAT) + b"1" * 4096)
        os.truncate(tar, 2**34)
        tracemalloc.start()
        assert names(tar) == ["a.png"]
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
        tracemalloc.stop()
        assert "what follows cannot be read" in faults(tar)
    long = tarfile.TarInfo("x")
    long.type = tarfile.GNUTYPE_LONGNAME
    tar.write_bytes(good + long.tobuf() * 5000)
    assert "what follows cannot be read" in faults(tar)


def test_what_is_no_archive_is_told(tmp_path: Path) -> None:
    packed = tmp_path / "a.tar"
    packed.write_bytes(gzip.compress(make_tar(tmp_path / "b.tar", {"a.png": PICTURE}).read_bytes()))
    error = load_error(f"{packed}/a.png")
    hint = f"`gunzip <{packed} >plain.tar` unpacks it"
    assert ("is compressed" in str(error), error.hint) == (True, hint)
    packed.write_bytes(PICTURE)
    assert "is not a tar archive" in str(load_error(f"{packed}/a.png"))
    assert "has no member `\\nc.png`" in str(load_error(f"{tmp_path}/b.tar/\nc.png"))
    assert split_member(f"{tmp_path}/missing.tar/a.png") is None
    assert split_member(f"{tmp_path}/b.tar") is None


def test_an_archive_that_changes_gives_no_bytes_of_another_member(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "a.tar", {"a.png": b"a" * 700, "b.png": b"b" * 700})
    member = index_tar(str(tar)).members["b.png"]
    span = member.offset, member.size
    with open_member(f"{tar}/b.png", span) as stream:
        assert stream.read() == b"b" * 700

    make_tar(tar, {"b.png": b"n" * 700, "a.png": b"a" * 700})
    with pytest.raises(ImageError, match="its archive has changed") as caught:
        open_member(f"{tar}/b.png", span)
    assert caught.value.kind == "truncated"
    assert content(f"{tar}/b.png") == b"n" * 700
    os.truncate(tar, 1000)
    with pytest.raises(ImageError, match="its archive has changed"):
        open_member(f"{tar}/b.png", span)


def test_a_server_never_opens_a_member(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "a.tar", {"a.png": PICTURE})
    error = load_error(f"{tar}/a.png", sources=frozenset({"data", "web"}))
    assert str(error) == "pictures from this kind of source are not accepted"
