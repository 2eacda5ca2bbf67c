"""Every shape of training data gives the same rows."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from idefics_cli.core.errors import InputError, UsageError
from idefics_cli.core.types import Message
from idefics_cli.training.data.options import ReadOptions
from idefics_cli.training.data.read import READERS, find_reader
from tests.support.training_data import (
    CAPTIONS,
    CHATS,
    PROMPT,
    SHAPES,
    content_of,
    name_of,
    read,
    read_all,
    write_lines,
    write_pictures,
)

pytest.importorskip("pyarrow")


def expected(folder: Path, prompt: str = PROMPT) -> dict[int, list[tuple[str, list[str]]]]:
    return {
        number: [
            ("user", [sha256((folder / name_of(number)).read_bytes()).hexdigest(), prompt]),
            ("assistant", [text]),
        ]
        for number, text in enumerate(CAPTIONS)
    }


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_gives_the_same_rows(shape: str, tmp_path: Path) -> None:
    rows = read(SHAPES[shape](tmp_path))
    wanted = expected(tmp_path)

    # The order of pictures with sidecars is that of their paths.
    found = sorted(map(content_of, rows), key=str)
    assert found == sorted(wanted.values(), key=str)
    assert {row.learned for row in rows} == {(False, True)}
    assert {row.mode for row in rows} == {"chat"}
    assert len({row.key for row in rows}) == len(rows)


@pytest.mark.parametrize("shape", sorted(SHAPES.keys() - set(CHATS)))
def test_captions_are_raw_prompts_of_a_base_model(shape: str, tmp_path: Path) -> None:
    rows = read(SHAPES[shape](tmp_path), ReadOptions(PROMPT, mode="complete"))

    found = sorted(map(content_of, rows), key=str)
    assert found == sorted(expected(tmp_path, f" {PROMPT}").values(), key=str)
    assert {row.mode for row in rows} == {"complete"}


@pytest.mark.parametrize("shape", CHATS)
def test_a_base_model_does_not_learn_from_conversations(shape: str, tmp_path: Path) -> None:
    data = SHAPES[shape](tmp_path)
    with pytest.raises(UsageError, match="has conversations, and a base model completes prompts"):
        read(data, ReadOptions("", mode="complete"))


def test_a_base_model_needs_no_question(tmp_path: Path) -> None:
    rows = read(SHAPES["txt"](tmp_path), ReadOptions("", mode="complete"))

    assert {len(row.messages[0].parts) for row in rows} == {1}


def test_every_reader_reads_one_of_the_shapes(tmp_path: Path) -> None:
    found = set()
    for number, write in enumerate(SHAPES.values()):
        found.add(find_reader(write(tmp_path / str(number)), ReadOptions(PROMPT)))
    assert found == set(READERS)


def test_the_prompt_may_say_where_the_picture_is(tmp_path: Path) -> None:
    rows = read(SHAPES["txt"](tmp_path), ReadOptions("In <image>, what is red?"))

    texts = [[p for p in row.messages[0].parts if isinstance(p, str)] for row in rows]
    assert texts == [["In ", ", what is red?"]] * len(CAPTIONS)


def test_a_number_in_the_prompt_is_the_place_of_the_picture_as_in_captions(tmp_path: Path) -> None:
    rows = read(SHAPES["txt"](tmp_path), ReadOptions("In [1], what is red?"))
    parts = rows[0].messages[0].parts
    assert [part if isinstance(part, str) else "picture" for part in parts] == [
        "In ",
        "picture",
        ", what is red?",
    ]


def test_pictures_may_be_in_another_folder(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures")
    table = write_lines(tmp_path / "rows.jsonl", {"image": "0.png", "caption": CAPTIONS[0]})

    (row,) = read(table, ReadOptions(PROMPT, images=tmp_path / "pictures"))
    assert content_of(row) == expected(tmp_path / "pictures")[0]


def test_rows_about_pictures_below_the_current_folder_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "photos")
    (tmp_path / "out").mkdir()
    table = write_lines(
        tmp_path / "out" / "rows.jsonl",
        *({"file_name": f"photos/{name_of(n)}", "caption": CAPTIONS[n]} for n in range(3)),
    )
    monkeypatch.chdir(tmp_path)

    assert list(map(content_of, read(table))) == list(expected(tmp_path / "photos").values())[:3]
    (tmp_path / "~").mkdir()
    for name in ("~/tilde.png", "./data:x.png"):
        (tmp_path / name).write_bytes((tmp_path / "photos" / "0.png").read_bytes())
        rows = read(write_lines(tmp_path / "out" / "a.jsonl", {"path": name, "text": "A"}))
        assert content_of(rows[0])[0] == expected(tmp_path / "photos")[0][0]


def test_a_sidecar_with_several_lines_gives_the_first_all_or_one_of_them(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    (tmp_path / "0.png").with_suffix(".txt").write_text("one\n\ntwo\nthree\n")
    (tmp_path / "1.png").with_suffix(".txt").write_text("single")

    def answers(options: ReadOptions) -> tuple[list[str], list[str]]:
        rows, left_out = read_all(tmp_path, options)
        others = [each.reason for each in left_out if each.reason != "no caption"]
        return [row.messages[-1].text for row in rows], list(others)

    assert answers(ReadOptions(PROMPT)) == (["one", "single"], ["further line"] * 2)
    assert answers(ReadOptions(PROMPT, lines="all")) == (["one", "two", "three", "single"], [])
    drawn = [answers(ReadOptions(PROMPT, lines="random", seed=seed)) for seed in range(20)]
    assert {texts[0] for texts, _ in drawn} == {"one", "two", "three"}
    assert answers(ReadOptions(PROMPT, lines="random", seed=3)) == drawn[3]
    keys = [row.key for row in read_all(tmp_path, ReadOptions(PROMPT, lines="all"))[0]]
    assert keys[:3] == [f"{tmp_path}/0.png:{n}" for n in (1, 2, 3)]


def test_pictures_without_a_caption_and_empty_captions_are_left_out(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    (tmp_path / "0.txt").write_text("A block.")
    (tmp_path / "1.txt").write_text(" \n")

    rows, left_out = read_all(tmp_path)
    assert [row.key for row in rows] == [str(tmp_path / "0.png")]
    reasons = [each.reason for each in left_out]
    assert (reasons.count("no answer"), reasons.count("no caption")) == (1, len(CAPTIONS) - 2)


def test_a_sidecar_of_the_full_name_comes_first(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    (tmp_path / "0.txt").write_text("of any 0")
    (tmp_path / "0.png.txt").write_text("of 0.png")

    rows, _ = read_all(tmp_path)
    assert [row.messages[-1].text for row in rows] == ["of 0.png"]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"\xff\xfeA\x00 \x00c\x00", None),
        (b"\xef\xbb\xbfA c", None),
        (b"caf\xe9", "is not UTF-8 text"),
        (b"a\0b", "holds NUL characters"),
        (b"x" * (2**20 + 1), "it is larger than 1 MiB"),
    ],
)
def test_sidecars_in_other_encodings_are_read_or_named(
    content: bytes, fault: str | None, tmp_path: Path
) -> None:
    write_pictures(tmp_path)
    (tmp_path / "0.txt").write_bytes(content)

    rows, left_out = read_all(tmp_path)
    if fault is None:
        assert [row.messages[-1].text for row in rows] == ["A c"]
        return
    (wrong,) = (each for each in left_out if each.reason == "wrong row")
    assert wrong.error is not None
    assert fault in str(wrong.error)
    assert str(tmp_path / "0.txt") in str(wrong.error)


def test_a_sidecar_that_is_a_pipe_is_named_and_not_waited_for(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    (tmp_path / "1.txt").write_text("A block.")
    os.symlink("/dev/zero", tmp_path / "0.txt")

    rows, left_out = read_all(tmp_path)
    assert len(rows) == 1
    # Walk leaves out devices, and this link leads to one.
    assert {each.reason for each in left_out} == {"no caption"}


@pytest.mark.parametrize("shape", ["txt", "metadata.jsonl"])
def test_folders_that_are_not_read_are_named(
    shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = SHAPES[shape](tmp_path / "data")
    (tmp_path / "outside").mkdir()
    (data / "link").symlink_to(tmp_path / "outside")
    (data / "secret").mkdir()
    scandir = os.scandir

    def refuse(path: str) -> object:
        if path.endswith("secret"):  # as for a folder of another user
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        rows, left_out = read_all(data)

    assert len(rows) == len(CAPTIONS)
    assert {each.key: each.reason for each in left_out} == {
        str(data / "link"): "linked folder",
        str(data / "secret"): "wrong row",
    }
    assert "Permission denied" in "".join(str(each.error) for each in left_out)


def test_two_metadata_files_in_one_folder_are_refused(tmp_path: Path) -> None:
    write_lines(SHAPES["metadata.csv"](tmp_path) / "metadata.jsonl", {"file_name": "0.png"})
    with pytest.raises(UsageError, match=r"metadata\.csv` and `.*metadata\.jsonl` describe"):
        read(tmp_path)


def test_metadata_of_folders_below_are_relative_to_them(tmp_path: Path) -> None:
    SHAPES["metadata.jsonl"](tmp_path / "train")
    SHAPES["metadata.csv"](tmp_path / "test")

    assert len(read(tmp_path)) == 2 * len(CAPTIONS)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"image": "0.png", "title": "A"}, "no column has an answer"),
        ({"image": "0.png", "caption": 3}, "`caption` is not text but a number"),
        ({"image": "0.png", "caption": "half \ud800"}, "`caption` holds half of a character"),
        ({"image": 3, "caption": "A"}, "`image` does not name a picture: it is a number"),
        ({"caption": "A"}, "no column names a picture"),
        ({"image": "0.png", "question": "<image> <image>?", "answer": "A"}, "has 2 `<image>`"),
    ],
)
def test_a_wrong_row_of_a_table_is_named_with_its_place(
    row: dict[str, object], fault: str, tmp_path: Path
) -> None:
    good = {"image": "0.png", "caption": "A"}
    table = write_lines(write_pictures(tmp_path) / "rows.jsonl", good, row, good)

    rows, (wrong,) = read_all(table)
    assert [each.key for each in rows] == [f"{table}:1", f"{table}:3"]
    assert (wrong.key, wrong.reason) == (f"{table}:2", "wrong row")
    assert fault in str(wrong.error)


def test_other_columns_can_be_named(tmp_path: Path) -> None:
    row = {"image": "0.png", "caption": "A", "Titel": "B", "Frage": "Was?"}
    table = write_lines(write_pictures(tmp_path) / "rows.jsonl", row, {**row, "Titel": None})

    rows, left_out = read_all(table, ReadOptions(PROMPT, question="Frage", answer="Titel"))
    assert [row.messages[-1].text for row in rows] == ["B"]
    assert rows[0].messages[0].text == "Was?"
    assert [each.reason for each in left_out] == ["no answer"]
    _, wrong = read_all(table, ReadOptions(PROMPT, answer="title"))
    assert wrong[0].error is not None
    assert str(wrong[0].error) == "no column `title`"
    assert "`Titel`" in str(wrong[0].error.hint)


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([], "`messages` is not a list of messages"),
        ([{"role": "tool", "content": "A"}], "`messages[0].role` is `tool`"),
        ([{"role": "assistant", "content": "A", "weight": 2}], "`messages[0].weight` is 2"),
        ([{"role": "assistant", "content": "A", "tool_calls": [{}]}], "unknown field"),
        ([{"role": "assistant", "content": [{"type": "image", "url": "a"}]}], "only user messages"),
        ([{"role": "user", "content": "<image><image>"}], "has 2 `<image>`"),
        ([{"role": "user", "content": [{"type": "image", "index": 1}]}], "have other `index`"),
    ],
)
def test_a_wrong_conversation_is_named_with_its_place(
    messages: list[object], fault: str, tmp_path: Path
) -> None:
    good = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    data = write_lines(
        tmp_path / "chats.jsonl", {"messages": good}, {"messages": messages, "image": "0.png"}
    )
    rows, (wrong,) = read_all(data)
    assert len(rows) == 1
    assert (wrong.key, wrong.reason) == (f"{data}:2", "wrong row")
    assert fault in str(wrong.error)


def test_weights_and_the_choice_of_the_last_answer_say_what_is_learned(tmp_path: Path) -> None:
    turns: list[dict[str, object]] = [
        {"role": "user", "content": "A?"},
        {"role": "assistant", "content": "a", "weight": 0},
        {"role": "user", "content": "B?"},
        {"role": "assistant", "content": "b", "weight": 1},
        {"role": "user", "content": "C?"},
        {"role": "assistant", "content": "c"},
    ]
    data = write_lines(tmp_path / "chats.jsonl", {"messages": turns, "system": "Be brief."})

    (row,) = read(data)
    assert row.messages[0] == Message("system", ("Be brief.",))
    assert row.learned == (False, False, False, False, True, False, True)
    (last,) = read(data, ReadOptions(PROMPT, learn="last"))
    assert last == replace(row, learned=(*[False] * 6, True))
    silent = [turn | {"weight": 0} if turn["role"] == "assistant" else turn for turn in turns]
    rows, left_out = read_all(write_lines(tmp_path / "silent.jsonl", {"messages": silent}))
    assert (rows, [each.reason for each in left_out]) == ([], ["no answer"])


def test_an_answer_may_hold_the_mark_of_a_picture(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "An <image>."}]
    data = write_lines(tmp_path / "a.jsonl", {"image": "0.png", "conversations": turns})

    (row,) = read(data)
    assert [len(message.attachments) for message in row.messages] == [1, 0]
    assert row.messages[-1].text == "An <image>."


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.jsonl", b"", "has no rows to train on"),
        ("a.jsonl", b'{"a": 1}\n', "has no rows to train on"),
        ("a.json", b"[]", "has no rows to train on"),
        ("a.jsonl", b'\n{"image": "0\n{', "a.jsonl:2: not valid JSON"),
        ("a.csv", b"", "has no rows to train on"),
        ("a.txt", b"a.jpg\n", "is not training data"),
        ("a.csv", b"a,b\n1,2\n", "no column names the pictures"),
    ],
)
def test_a_file_without_rows_is_refused(
    name: str, content: bytes, fault: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises((InputError, UsageError), match=fault):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "Photo;Title;image\n0.png;A cat;old\n"),
        ("a.csv", "Photo,Title,other\n0.png,A cat,old\n"),
        ("a.jsonl", '{"Photo": "0.png", "Title": "A cat", "image": "old"}\n'),
        ("metadata.csv", "Photo\tTitle\n0.png\tA cat\n"),
        ("chat.jsonl", None),
    ],
)
def test_the_picture_may_be_in_a_column_of_any_name(
    name: str, content: str | None, tmp_path: Path
) -> None:
    turns = [{"from": "human", "value": PROMPT}, {"from": "gpt", "value": "A cat"}]
    row = {"Photo": "0.png", "conversations": turns}
    path = write_pictures(tmp_path) / name
    path.write_text(json.dumps(row) if content is None else content)
    data = tmp_path if name == "metadata.csv" else path

    (found,) = read(data, ReadOptions(PROMPT, picture="Photo", answer="Title"))
    assert content_of(found) == [expected(tmp_path)[0][0], ("assistant", ["A cat"])]


def test_a_known_column_is_found_in_capital_letters_too(tmp_path: Path) -> None:
    path = write_pictures(tmp_path) / "a.csv"
    path.write_text("URL,Image,caption\nhttp://localhost/a.png,0.png,A cat\n")
    (found,) = read(path, ReadOptions(PROMPT, picture="Image"))
    assert content_of(found)[0] == expected(tmp_path)[0][0]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "metadata.csv"])
@pytest.mark.parametrize("picture", [None, "foto"])
def test_a_table_without_the_column_of_pictures_says_which_columns_there_are(
    name: str, picture: str | None, tmp_path: Path
) -> None:
    path = write_pictures(tmp_path) / name
    if name.endswith("csv"):
        path.write_text("photo,title\n0.png,A cat\n")
    else:
        path.write_text('{"photo": "0.png", "title": "A cat"}\n')
    options = ReadOptions(PROMPT, picture=picture)
    hint = "`--picture COLUMN` names it; the columns are `photo`, `title`"
    if name == "metadata.csv":
        _, (wrong,) = read_all(tmp_path, options)
        column = "column names" if picture is None else "column `foto` with"
        assert wrong.error is not None
        assert (str(wrong.error), wrong.error.hint) == (f"no {column} a picture", hint)
        return
    with pytest.raises(UsageError, match="no column names the pictures") as caught:
        read(path, options)
    assert caught.value.hint == hint


def test_what_is_not_there_or_has_no_captions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        read(tmp_path / "missing")
    with pytest.raises(InputError, match="no captions in the folder") as caught:
        read(write_pictures(tmp_path / "pictures"))
    assert "`a.txt` beside `a.jpg`" in str(caught.value.hint)
    (tmp_path / "pictures" / "captions.csv").touch()
    with pytest.raises(InputError, match="no captions in the folder") as caught:
        read(tmp_path / "pictures")
    assert caught.value.hint == f"name the file itself: `{tmp_path}/pictures/captions.csv`"


def test_json_of_several_files_may_be_read_with_any_extension(tmp_path: Path) -> None:
    rows = [{"image": "0.png", "caption": "A"}]
    write_pictures(tmp_path)
    (tmp_path / "array.jsonl").write_text(json.dumps(rows))
    (tmp_path / "lines.json").write_text(json.dumps(rows[0]) + "\n")

    assert len(read(tmp_path / "array.jsonl")) == len(read(tmp_path / "lines.json")) == 1
