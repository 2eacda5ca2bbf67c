"""Every slash command, with a fake model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest

from idefics_cli.chat.commands.dispatch import Dispatcher
from idefics_cli.chat.commands.slash_command import (
    CommandContext,
    CommandResult,
    SlashCommand,
)
from idefics_cli.chat.commands.table import COMMANDS
from idefics_cli.chat.store.sessions import NullStore
from idefics_cli.core.errors import IdeficsError, MemoryLimitError, UsageError
from idefics_cli.core.types import TokenChunk
from idefics_cli.engine.protocol import Prepared
from tests.support.chat import ChatWorld, world
from tests.support.fakes import FAKE_SPEC, FakeEngine

RIGHT = {
    "image": ("/image b.png", "[2] b.png, 10x4 landscape, 10 tokens"),
    "paste": None,  # needs a clipboard
    "images": ("/images", "a.png, 8x6 landscape, turn 1, 10 tokens"),
    "drop": ("/drop 1", "dropped [1] "),
    "undo": ("/undo", "took back: What?"),
    "retry": None,  # answers; see below
    "edit": None,
    "copy": None,  # needs a clipboard; see `tests/ui/test_clipboard.py`
    "editor": None,
    "forget": None,
    "clear": ("/clear", "started a new conversation"),
    "system": ("/system Be brief.", "instruction set"),
    "set": ("/set temperature=0.5 top_k=3", "temperature = 0.5\ntop_k = 3"),
    "schema": ("/schema caption, people int", "answers are JSON with caption, people"),
    "model": ("/model other", "the model is other now"),
    "stats": ("/stats", "context: 15 of 1000 tokens, 2%"),
    "save": ("/save trip", "saved as trip"),
    "load": None,
    "export": ("/export json x.json", "wrote x.json"),
    "help": ("/help drop", "/drop N: Take picture N out of what the model sees"),
    "exit": ("/exit", ""),
}


def test_every_command_is_tried() -> None:
    assert RIGHT.keys() == COMMANDS.keys()


def test_a_new_command_is_one_function_and_its_row(tmp_path: Path) -> None:
    def greet(context: CommandContext, words: str) -> CommandResult:
        """Greet somebody."""
        return CommandResult((f"hello {words}, says {context.chat.model.name}",))

    here = world(tmp_path)
    table = {**COMMANDS, "greet": SlashCommand("greet", "NAME", greet)}
    dispatcher = Dispatcher(here.chat, tmp_path, table)
    assert dispatcher.run("/greet Ann").lines == ("hello Ann, says fake",)
    assert ("/greet NAME", "Greet somebody") in dispatcher.run("/help").rows
    assert dispatcher.run("/help greet").lines == ("/greet NAME: Greet somebody",)
    assert [c.text for c in dispatcher.complete("/gre")] == ["/greet"]
    assert [c.text for c in dispatcher.complete("/help gre")] == ["greet"]
    with pytest.raises(UsageError) as caught:
        dispatcher.run("/grete")
    assert caught.value.hint == "did you mean `/greet`?"
    with pytest.raises(UsageError):
        here.dispatcher.run("/greet Ann")


@pytest.mark.parametrize(("line", "told"), [use for use in RIGHT.values() if use])
def test_a_command_does_what_it_says(line: str, told: str, tmp_path: Path, pictures: Path) -> None:
    here = world(tmp_path, "A red one.")
    here.models["other"] = FakeEngine(spec=replace(FAKE_SPEC, name="other"))
    _, err, _ = here.talk("@a.png What?", line)
    assert told in err.partition("landscape, 10 tokens\n")[2]
    assert "error" not in err


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("/image", "a picture is missing"),
        ("/paste it", "/paste takes nothing after it, not `it`"),
        ("/images 1", "/images takes nothing after it, not `1`"),
        ("/drop", "a number is missing"),
        ("/drop x", "`x` is not a number from 1"),
        ("/drop 7", "there is no picture 7"),
        ("/editor x", "/editor takes nothing after it, not `x`"),
        ("/undo 2", "/undo takes nothing after it, not `2`"),
        ("/retry temperature=hot", "`temperature` must be a number, not `hot`"),
        ("/retry plain=on", "no setting `plain`"),
        ("/edit 9", "there is no question 9"),
        ("/copy 9", "there is no question 9"),
        ("/copy it", "`it` is not a number from 1"),
        ("/forget 1", "there is 1 question"),
        ("/clear all", "/clear takes nothing after it, not `all`"),
        ("/schema a number", "the field `a` of the schema has an unknown type `number`"),
        ('/schema {"not": {}}', "`not` cannot be used, at the top of the schema"),
        ("/set temprature=1", "no setting `temprature`"),
        ("/set top_p=3", "`top_p` must be more than 0 and at most 1, not `3.0`"),
        ("/set top_p", "a value for `top_p` is missing"),
        ("/model nope", "unknown model `nope`"),
        ("/stats x", "/stats takes nothing after it, not `x`"),
        ("/save", "a name is missing"),
        ("/load", "a name is missing"),
        ("/export pdf", "`pdf` is not a format"),
        ("/export", "a format is missing"),
        ("/help nope", "no command `nope`"),
        ("/imgae a.png", "no command `/imgae`"),
        ("/nothere/a.txt", "no picture `/nothere/a.txt`"),
    ],
)
def test_wrong_use_is_an_error_and_changes_nothing(
    line: str, error: str, tmp_path: Path, pictures: Path
) -> None:
    here = world(tmp_path, "A red one.")
    here.talk("@a.png What?")
    before = here.chat.conversation
    with pytest.raises(IdeficsError) as caught:
        here.dispatcher.run(line)
    assert str(caught.value) == error
    assert here.chat.conversation == before
    assert here.chat.model.engine is here.engine


@pytest.mark.parametrize("line", ["/undo", "/retry", "/edit 1", "/forget 1"])
def test_without_a_question_there_is_none_to_change(line: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no question was asked yet"):
        world(tmp_path).dispatcher.run(line)


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("/imgae x", "did you mean `/image`?"),
        ("/zzz", "`/help` lists the commands"),
        ("/copi", "did you mean `/copy`?"),
        ("/bookmark", "`/help` lists the commands"),
        ("/regne", "did you mean `/regen`?"),
        ("/st", "did you mean `/stats`?"),
        ("/temperature 1", "`/set temperature=VALUE` sets it"),
        (
            "/History",
            "Up and Ctrl-R bring back what you typed, `/export md` writes the conversation",
        ),
        ("/read notes.txt", "`/image PATH` attaches a picture; paste a text into the line"),
    ],
)
def test_an_unknown_command_comes_with_a_suggestion(line: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        world(tmp_path).dispatcher.run(line)
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("alias", "name"),
    [("regen", "retry"), ("Quit", "exit"), ("bye", "exit"), ("q", "exit"), ("?", "help")],
)
def test_an_alias_is_its_command(alias: str, name: str, tmp_path: Path) -> None:
    aliased, named = world(tmp_path / "a", "One.", "Two."), world(tmp_path / "b", "One.", "Two.")
    assert aliased.talk("What?", f"/{alias}")[:2] == named.talk("What?", f"/{name}")[:2]
    assert aliased.engine.requests == named.engine.requests
    assert aliased.dispatcher.run(f"/help {alias}") == named.dispatcher.run(f"/help {name}")


def test_names_and_aliases_are_all_different() -> None:
    names = [*COMMANDS, *(alias for command in COMMANDS.values() for alias in command.aliases)]
    assert len(set(names)) == len(names)


def test_help_lists_an_alias_once_beside_its_command(tmp_path: Path) -> None:
    rows = dict(world(tmp_path).dispatcher.run("/help").rows)
    assert len(rows) == len(COMMANDS)
    summary = "Start a new conversation; model and settings stay; also `/reset`, `/new`"
    assert rows["/clear"] == summary


def test_retry_asks_the_same_again_with_other_sampling_for_once(tmp_path: Path) -> None:
    here = world(tmp_path, "One.", "Two.", "Three.")
    out, _, _ = here.talk("What?", "/retry temperature=0.7 seed=1", "And?")
    first, second, third = here.engine.requests
    assert out == "One.\nTwo.\nThree.\n"
    assert second.messages == first.messages
    assert [r.sampling.temperature for r in (first, second, third)] == [0.0, 0.7, 0.0]
    assert [m.text for m in third.messages] == ["What?", "Two.", "And?"]


def test_a_greedy_retry_does_not_promise_the_answer_that_was_there(tmp_path: Path) -> None:
    # After `/drop` or `/system` the prompt is another one, and so may be its likeliest answer.
    here = world(tmp_path, "One.", "Two.")
    out, err, _ = here.talk("What?", "/retry")
    assert out == "One.\nTwo.\n"
    assert "the same prompt gets the same answer; `/retry temperature=0.7` varies it\n" in err


def test_a_retry_that_fails_leaves_the_answer_that_was_there(tmp_path: Path) -> None:
    errors: list[Exception | None] = [None, MemoryLimitError("out of memory")]
    here = world(tmp_path, "One.", completion_error=lambda requests: errors.pop(0))
    here.talk("What?", "/retry")
    (turn,) = here.chat.conversation.turns
    assert turn.reply is not None
    assert turn.reply.text == "One."


def test_a_retry_leaves_what_is_staged_for_the_next_text(tmp_path: Path, pictures: Path) -> None:
    here = world(tmp_path, "One.", "Two.")
    here.talk("What?", "/image a.png", "/retry")
    assert len(here.chat.turns.staged) == 1


def test_a_chat_without_a_question_is_not_exported(tmp_path: Path, pictures: Path) -> None:
    here = world(tmp_path, "One.")
    _, err, _ = here.talk("@a.png What?", "/undo", f"/export md {tmp_path}/chat.md")
    assert "error: there is nothing to export: the chat has no question" in err
    assert not (tmp_path / "chat.md").exists()


def test_undo_gives_the_pictures_back(tmp_path: Path, pictures: Path) -> None:
    here = world(tmp_path, "One.", "Two.")
    _, err, person = here.talk("@a.png What?", "/undo", "What is it?")
    told = " ".join(err.split())
    assert "took back: What? [1] a.png goes with your next message" in told
    assert "`/images` lists, `/drop 1` takes it out" in told
    assert person.seen[2][0] == "1 picture > "
    assert [len(request.attachments) for request in here.engine.requests] == [1, 1]


def test_edit_offers_a_question_and_goes_back_when_it_is_asked(
    tmp_path: Path, pictures: Path
) -> None:
    here = world(tmp_path, "One.", "Two.", "Three.")
    _, _, person = here.talk("@a.png What?", "And?", "/edit 1", "What is it?")
    assert person.drafts[3] == "What?"
    assert here.questions == ["What is it?"]
    assert len(here.engine.requests[2].attachments) == 1


def test_edit_changes_nothing_until_the_new_text_is_there(tmp_path: Path) -> None:
    here = world(tmp_path, "One.", "Two.")
    here.talk("What?", "/edit 1", "", "And?")
    assert here.questions == ["What?", "And?"]


def test_another_command_ends_the_editing(tmp_path: Path) -> None:
    here = world(tmp_path, "One.", "Two.")
    _, _, person = here.talk("What?", "/edit 1", "/images", "And?")
    assert here.questions == ["What?", "And?"]
    assert [prompt for prompt, _ in person.seen] == ["> ", "> ", "edit 1 > ", "> ", "> "]


def test_forget_leaves_the_oldest_out_of_the_prompt(tmp_path: Path) -> None:
    here = world(tmp_path, "One.", "Two.", "Three.")
    here.talk("a", "b", "/forget 1", "c")
    assert [m.text for m in here.engine.requests[2].messages] == ["b", "Two.", "c"]


def test_dropped_pictures_are_out_of_the_prompt(tmp_path: Path, pictures: Path) -> None:
    here = world(tmp_path, "One.", "Two.")
    here.talk("/image a.png b.png", "a", "/drop 1", "c")
    assert [len(r.attachments) for r in here.engine.requests] == [2, 1]


def test_dropping_a_staged_picture_tells_the_new_numbers(tmp_path: Path, pictures: Path) -> None:
    here = world(tmp_path, "One.")
    _, err, _ = here.talk("/image a.png b.png 'my dog.png'", "/drop 2", "/drop 2", "What?")
    assert "dropped [2] b.png\nnew numbers: [2] my dog.png\ndropped [2] my dog.png\n" in err
    assert [picture.number for picture in here.chat.conversation.pictures] == [1]


def test_settings_of_a_chat_go_into_its_requests_and_are_kept(tmp_path: Path) -> None:
    here = world(tmp_path, "One.")
    here.talk("/set temperature=0.5", "/system Be brief.", "/save trip", "a")
    (request,) = here.engine.requests
    assert request.sampling.temperature == 0.5
    assert request.messages[0].text == "Be brief."
    here.chat.turns.session.close()
    again = here.sessions.open("trip")
    assert again.conversation.settings == {"temperature": 0.5}
    again.close()


def test_set_without_a_value_goes_back_to_the_start(tmp_path: Path) -> None:
    here = world(tmp_path)
    _, err, _ = here.talk("/set top_p=0.5", "/set top_p=")
    assert err == "top_p = 0.5\ntop_p = 1.0\n"


def test_a_saved_chat_is_loaded_with_what_was_said(tmp_path: Path, pictures: Path) -> None:
    first = world(tmp_path, "One.")
    first.talk("/save trip", "@a.png a")
    first.chat.turns.session.close()
    second = world(tmp_path, "Two.")
    _, err, _ = second.talk("/load trip", "b")
    assert "continuing `trip`: 1 question, 1 picture\n> a\nOne.\n" in err
    (request,) = second.engine.requests
    assert [m.text for m in request.messages] == ["a", "One.", "b"]
    assert len(request.attachments) == 1


def test_a_loaded_chat_tells_its_instruction_and_settings(tmp_path: Path) -> None:
    first = world(tmp_path, "One.")
    first.talk("/save trip", "/system Be brief.", "/set temperature=0.5 plain=on top_p=", "a")
    first.chat.turns.session.close()
    _, err, _ = world(tmp_path).talk("/load trip")
    assert (
        "continuing `trip`: 1 question, 0 pictures\ninstruction: Be brief.\n"
        "settings: temperature = 0.5, plain = on\n> a\nOne.\n"
    ) in err


def test_clear_keeps_what_was_said_among_the_saved_chats(tmp_path: Path, pictures: Path) -> None:
    here = world(tmp_path, "One.", "Two.", "Three.")
    lines = ("/save trip", "/system Be brief.", "/set top_k=3", "a", "/image a.png")
    _, err, _ = here.talk(*lines, "/clear", "b", "/load trip", "c")
    assert (
        "started a new conversation; `/load trip` opens the former one\nno longer attached: a.png\n"
    ) in err
    second, third = here.engine.requests[1:]
    assert [m.text for m in second.messages] == ["Be brief.", "b"]
    assert second.sampling.top_k == 3
    assert [m.text for m in third.messages] == ["Be brief.", "a", "One.", "c"]
    assert not second.attachments
    assert len(here.sessions.list()) == 2


def test_clear_without_saving_begins_anew_too(tmp_path: Path) -> None:
    here = ChatWorld(tmp_path, FakeEngine("One.", "Two."), NullStore())
    _, err, _ = here.talk("a", "/clear", "b")
    assert "started a new conversation\n" in err
    assert here.questions == ["b"]


def test_the_open_chat_cannot_be_loaded(tmp_path: Path) -> None:
    here = world(tmp_path, "One.")
    _, err, _ = here.talk("/save trip", "a", "/load trip", "/load last")
    assert err.count("error: `trip` is open here already\n") == 1
    assert err.count("error: `last` is open here already\n") == 1
    assert here.questions == ["a"]


def test_without_saving_nothing_can_be_loaded(tmp_path: Path) -> None:
    here = ChatWorld(tmp_path, FakeEngine("One."), NullStore())
    _, err, _ = here.talk("a", "/load trip")
    assert "error: nothing is saved here" in err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("kind", ["md", "json", "html"])
def test_an_export_has_what_was_said_and_overwrites_nothing(
    kind: str, tmp_path: Path, pictures: Path
) -> None:
    here = world(tmp_path, "A red one.")
    _, err, _ = here.talk("@a.png What is it?", f"/export {kind}", f"/export {kind}")
    text = (pictures / f"chat.{kind}").read_text(encoding="utf-8")
    assert "A red one." in text
    assert "What is it?" in text
    assert f"error: `chat.{kind}` exists already" in err


def test_a_text_can_be_written_in_an_editor(tmp_path: Path) -> None:
    editor = tmp_path / "my editor"
    editor.write_text("#!/bin/sh\nprintf 'What is\\n/image it?\\n' > \"$2\"\n")
    editor.chmod(0o755)
    here = world(tmp_path, "Red.")
    assert here.talk("/editor", VISUAL=f"'{editor}' --wait")[0] == "Red.\n"
    assert here.questions == ["What is\n/image it?"]


@pytest.mark.parametrize(
    ("editor", "told"),
    [("true", "nothing was written"), ("/no/editor", "error"), ("false", "error")],
)
def test_an_editor_that_gives_no_text_asks_nothing(editor: str, told: str, tmp_path: Path) -> None:
    assert told in world(tmp_path).talk("/editor", VISUAL=editor)[1]


def test_a_text_of_an_editor_that_cannot_be_asked_is_the_next_draft(
    tmp_path: Path, pictures: Path
) -> None:
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\nprintf 'Is\\n[3] red?\\n' > \"$1\"\n")
    editor.chmod(0o755)
    here = world(tmp_path, "Red.")
    _, err, person = here.talk("/image a.png", "/editor", VISUAL=str(editor))
    assert "error: the prompt has `[3]`, and there is no picture 3\n" in err
    assert person.drafts[-1] == "Is\n[3] red?"
    assert here.questions == []


def test_stats_tell_what_was_reused(tmp_path: Path) -> None:
    class Reusing(FakeEngine):
        def stream(
            self, prepared: Prepared, *, cancel: Event | None = None
        ) -> Iterator[TokenChunk]:
            yield TokenChunk("One.", 6, "stop", 40, 30, prefill_seconds=1.0, decode_seconds=2.0)

    here = ChatWorld(tmp_path, Reusing())
    _, err, _ = here.talk("a", "/stats")
    assert "prompts: 10 tokens computed, 30 reused\n" in err
    assert "answers: 1, 6 tokens, 3.0 tokens per second\n" in err
    reply = here.chat.conversation.turns[0].reply
    assert reply is not None
    assert (reply.prompt_tokens, reply.reused_tokens) == (40, 30)


def test_help_alone_is_the_command_and_in_a_sentence_is_asked(tmp_path: Path) -> None:
    assert world(tmp_path / "a").talk("help")[1] == world(tmp_path / "b").talk("/help")[1]
    here = world(tmp_path / "c", "How?", "There.")
    here.talk("help me", "exit where?")
    assert here.questions == ["help me", "exit where?"]
