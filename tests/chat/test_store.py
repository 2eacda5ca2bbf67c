"""Sessions on disk: a session that is opened again equals the one that was typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from idefics_cli.chat.store.lock import HeldElsewhereError
from idefics_cli.chat.store.sessions import NullStore, SessionStore
from idefics_cli.core.errors import SessionError, UsageError
from idefics_cli.core.files import unfinished_path
from idefics_cli.core.types import (
    Attachment,
    Completion,
    GenerationRequest,
    ImageLimits,
    LoadSpec,
    Message,
)
from tests.support.sessions import (
    GREEDY,
    asked,
    kept,
    make,
    pixels,
    png,
    stage,
    staged,
    talk,
)


def test_a_loaded_session_asks_the_model_what_the_typed_one_asks(store: SessionStore) -> None:
    with store.create("demo") as session:
        talk(session)
        typed, conversation = asked(session), session.conversation
    with store.open("last") as session:
        assert session.conversation == conversation
        assert asked(session) == typed
    assert pixels(typed) == [png("blue")]


def test_a_new_name_without_a_question_leaves_nothing_unless_the_chat_is_set_up(
    store: SessionStore,
) -> None:
    with store.create("demo", "trip") as session:
        talk(session)
    store.create("demo", "left at once").close()
    with store.create("demo", "asked nothing") as session:
        session.ask("Hi")
        session.roll_back()
    with store.create("demo", "poet", system="Answer in verse.") as poet:
        pass
    assert [info.name for info in store.list()] == ["poet", "colours"]
    # The last chat is the last one with a question.
    with store.open("last") as session:
        assert session.conversation.turns
        assert session.id != poet.id
    assert store.find("poet") == poet.id


@pytest.mark.parametrize(
    "text", ["\udce9", "a\r\n\tb\u2028\x00\x1b[2J", "  « ü »  ", "\\ud83d", "😀", ""]
)
def test_every_character_is_kept(store: SessionStore, text: str) -> None:
    with store.create("demo", "n") as session:
        session.ask(text)
        session.reply(text, "stop")
    for (turn,) in (session.conversation.turns, store.read("n")[1].turns):
        assert turn.reply is not None
        assert (turn.text, turn.reply.text) == (text, text)


def test_what_is_read_beside_an_open_session_is_the_same(store: SessionStore) -> None:
    with store.create("demo") as session:
        talk(session)
        assert store.read("colours")[1] == session.conversation


def test_a_private_session_asks_the_same_and_leaves_nothing(
    store: SessionStore, tmp_path: Path
) -> None:
    with NullStore().create("demo") as private, store.create("demo") as session:
        talk(private)
        before = kept(tmp_path)
        assert before == []
        talk(session)
        ours, theirs = asked(private), asked(session)
        assert private.id == ""
        assert [m.text for m in ours.messages] == [m.text for m in theirs.messages]
    from idefics_cli.images.loader import ImageLoader

    loader = ImageLoader(ImageLimits())
    assert [loader.open(a).tobytes() for a in ours.attachments] == [
        loader.open(a).tobytes() for a in theirs.attachments
    ]


def test_a_private_session_can_go_on_with_a_kept_one(store: SessionStore, tmp_path: Path) -> None:
    with store.create("demo") as session:
        talk(session)
        expected = asked(session)
    files = {path: path.read_bytes() for path in kept(tmp_path)}
    with NullStore().create("demo", start=store.read("last")[1]) as private:
        assert asked(private) == expected
        private.ask("and then?")
        private.reply("secret", "stop")
    assert {path: path.read_bytes() for path in kept(tmp_path)} == files


def test_every_change_is_on_disk_when_the_method_returns(store: SessionStore) -> None:
    with store.create("demo", "n") as session:
        session.ask("a?", [staged("red")])
        assert store.read("n")[1].pending == session.conversation.pending
        session.reply("A.", "stop")
        assert store.read("n")[1] == session.conversation


def test_a_session_without_a_question_leaves_nothing(store: SessionStore, tmp_path: Path) -> None:
    with store.create("demo") as session:
        session.set_system("Be brief.")
        session.set_setting("seed", 1)
    assert kept(tmp_path) == []


def test_what_was_set_before_the_first_question_is_kept_with_it(store: SessionStore) -> None:
    with store.create("demo", system="old", settings={"top_k": 2}) as session:
        session.set_system("Be brief.")
        session.set_setting("seed", 1)
        session.ask("a?")
    conversation = store.read("last")[1]
    assert (conversation.system, conversation.settings) == ("Be brief.", {"top_k": 2, "seed": 1})


def test_the_file_only_grows(store: SessionStore, tmp_path: Path) -> None:
    with store.create("demo", "n") as session:
        (path,) = (tmp_path / "data" / "sessions").glob("*.jsonl")
        before = path.read_bytes()
        talk(session)
        session.undo()
        assert path.read_bytes().startswith(before)
        assert b"mistake" in path.read_bytes()
    assert all(isinstance(json.loads(line), dict) for line in path.read_bytes().splitlines())


def test_a_conversation_that_an_earlier_version_cleared_has_no_turns(
    store: SessionStore, tmp_path: Path
) -> None:
    with store.create("demo", "n") as session:
        talk(session)
    (path,) = (tmp_path / "data" / "sessions").glob("*.jsonl")
    with path.open("a") as file:
        file.write('{"event": "cleared", "at": "2026-01-01T00:00:00.000+00:00"}\n')
    conversation = store.read("last")[1]
    assert conversation.turns == ()


def test_typed_loaded_and_asked_at_once_give_the_same_tokens(
    store: SessionStore, tmp_path: Path
) -> None:
    from idefics_cli.demo.samples import write_samples
    from idefics_cli.engine.local.engine import LocalEngine

    write_samples(tmp_path / "scenes", count=2, seed=3)
    photos = sorted((tmp_path / "scenes").glob("*.png"))
    told = [
        (photos[0], "Describe this image."),
        (None, "How many shapes are there?"),
        (photos[1], "How many shapes are in [2]?"),
    ]
    spec = LoadSpec(repo="demo", family="idefics2", name="demo")
    with LocalEngine(spec) as engine, store.create("demo") as session:

        def answer(request: GenerationRequest) -> Completion:
            return engine.complete([engine.prepare(request)])[0]

        messages: list[Message] = []
        for photo, text in told:
            pictures = [] if photo is None else [stage(photo)]
            # Turn by turn, loaded from the disk each time.
            session.ask(text, pictures)
            session.close()
            session = store.open("last")
            typed = answer(session.conversation.request(GREEDY))
            # The same messages, made by hand from the files of the user.
            shown = () if photo is None else (Attachment(str(photo)),)
            before, mark, after = text.partition("[2]")
            parts = (before, *shown, after) if mark else (*shown, text)
            messages.append(Message("user", parts))
            at_once = answer(GenerationRequest(tuple(messages), GREEDY))
            assert typed.token_ids == at_once.token_ids
            assert typed.prompt_tokens == at_once.prompt_tokens
            session.reply(typed.text, typed.finish)
            messages.append(Message("assistant", (typed.text,)))
        session.close()


def test_a_session_is_found_by_id_name_prefix_and_last(store: SessionStore) -> None:
    first, second = make(store, "holiday", None)
    assert store.find(first) == store.find("holiday") == first
    assert store.find("last") == second
    assert store.find(second[:7]) == second
    with store.open("holiday") as session:
        session.ask("more")
    assert store.find("last") == first


def test_an_unknown_or_ambiguous_key_is_an_error(store: SessionStore) -> None:
    with pytest.raises(SessionError, match="there are no sessions yet"):
        store.find("last")
    make(store, *[None] * 40)  # more ids than first characters: two ids begin alike
    starts = [info.id[0] for info in store.list()]
    twice = next(letter for letter in starts if starts.count(letter) > 1)
    with pytest.raises(SessionError, match="is the beginning of"):
        store.find(twice)
    for key in ("", "none", "../x"):
        with pytest.raises(SessionError, match="no session"):
            store.find(key)


def test_a_name_belongs_to_one_session(store: SessionStore) -> None:
    first, second = make(store, "one", "two")
    with pytest.raises(UsageError, match=f"session {first} has the name `one`"):
        store.create("demo", "one")
    with store.open(second) as session:
        with pytest.raises(UsageError, match="has the name"):
            session.rename("one")
        session.rename("two")
        session.rename(None)
    make(store, "two")
    for bad in ("", " ", "last", "a\nb", "x" * 81, "\x1b[2J"):
        with pytest.raises(UsageError):
            store.create("demo", bad)
        with pytest.raises(UsageError):
            NullStore().create("demo", bad)


def test_the_list_has_the_last_changed_first(store: SessionStore) -> None:
    make(store, "one", "two", None)
    with store.open("one") as session:
        session.ask("picture?", [staged("red")])
    infos = store.list()
    assert [info.title for info in infos] == ["one", "question of None", "two"]
    assert [(info.turns, info.pictures) for info in infos] == [(1, 1), (1, 0), (1, 0)]
    assert all(info.created < info.updated for info in infos)


def test_removing_a_session_leaves_the_pictures_of_others(
    store: SessionStore, tmp_path: Path
) -> None:
    for name, colors in (("one", ["red", "blue"]), ("two", ["blue", "green"])):
        with store.create("demo", name) as session:
            session.ask("a?", [staged(color) for color in colors])
            session.reply("a", "stop")
            session.undo()
    left = unfinished_path(Path("a.png"), process=10**9).name
    (store.pictures.path / left).write_bytes(b"of a killed process")
    before = sum(path.stat().st_size for path in kept(tmp_path))
    assert store.remove(["one"], dry_run=True) > 0
    assert sum(path.stat().st_size for path in kept(tmp_path)) == before
    freed = store.remove(["one"])
    assert freed == before - sum(path.stat().st_size for path in kept(tmp_path))
    assert {p.read_bytes() for p in store.pictures.path.iterdir()} == {png("blue"), png("green")}
    store.remove(["two"])
    assert kept(tmp_path) == []


def test_removing_is_all_or_nothing(store: SessionStore) -> None:
    make(store, "one", "two")
    with pytest.raises(SessionError, match="no session `none`"):
        store.remove(["one", "none"])
    with store.open("two"), pytest.raises(HeldElsewhereError):
        store.remove(["one", "two"])
    assert len(store.list()) == 2
