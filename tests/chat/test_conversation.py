"""A conversation as a value: every operation, and the request for the model."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from idefics_cli.chat.conversation import ChatPicture, Conversation, Reply
from idefics_cli.core.errors import PromptError, UsageError
from idefics_cli.core.types import Attachment, GenerationRequest, Message, Sampling


def attachment(name: str) -> Attachment:
    return Attachment(name, f"digest of {name}")


def picture(name: str) -> ChatPicture:
    return ChatPicture(0, name, attachment(name))


def said(text: str) -> Reply:
    return Reply(text, "stop")


def walk(*turns: tuple[str, tuple[str, ...], str]) -> Conversation:
    """Return a conversation of (question, names of its pictures, answer)."""
    conversation = Conversation("demo")
    for text, names, reply in turns:
        asked = conversation.asked(text, [picture(name) for name in names])
        conversation = asked.replied(said(reply))
    return conversation


def prompt(conversation: Conversation, text: str = "and?") -> list[tuple[str, tuple[str, ...]]]:
    """Return the messages for *text*: role and parts, with pictures in brackets."""
    request = conversation.asked(text).request(Sampling())
    return [(m.role, tuple(shown(part) for part in m.parts)) for m in request.messages]


def shown(part: object) -> str:
    return f"<{part.source}>" if isinstance(part, Attachment) else str(part)


TWO = walk(("a?", ("a.png",), "A."), ("b and c?", ("b.png", "c.png"), "B, C."))


def test_turn_by_turn_makes_the_same_request_as_all_at_once() -> None:
    sampling = Sampling(temperature=0.5, seed=1)
    typed = Conversation("demo", system="Be brief.")
    typed = typed.asked("a?", [picture("a.png"), picture("b.png")]).replied(said("A."))
    assert typed.asked("b?").request(sampling) == GenerationRequest(
        (
            Message("system", ("Be brief.",)),
            Message("user", (attachment("a.png"), attachment("b.png"), "a?")),
            Message("assistant", ("A.",)),
            Message("user", ("b?",)),
        ),
        sampling,
    )


def test_pictures_are_numbered_in_order_of_appearance() -> None:
    assert [(p.number, p.source) for p in TWO.pictures] == [
        (1, "a.png"),
        (2, "b.png"),
        (3, "c.png"),
    ]


def test_a_dropped_picture_leaves_the_prompt_and_its_text_stays() -> None:
    assert prompt(TWO.dropped(2)) == [
        ("user", ("<a.png>", "a?")),
        ("assistant", ("A.",)),
        ("user", ("<c.png>", "b and c?")),
        ("assistant", ("B, C.",)),
        ("user", ("and?",)),
    ]


def test_the_number_of_a_dropped_picture_is_not_given_again() -> None:
    asked = TWO.dropped(3).asked("d?", [picture("d.png")])
    assert [p.number for p in asked.pictures] == [1, 2, 3, 4]
    assert [p.number for p in asked.pictures_in_prompt] == [1, 2, 4]


def test_undo_is_as_if_the_turn_had_never_been() -> None:
    assert TWO.undone() == walk(("a?", ("a.png",), "A."))
    assert TWO.undone().undone() == Conversation("demo")


def test_a_pending_turn_can_be_undone_as_well() -> None:
    assert TWO.asked("oh").undone() == TWO


def test_a_rolled_back_question_is_as_if_it_had_never_been() -> None:
    assert TWO.asked("d?", [picture("d.png")]).rolled_back() == TWO


def test_retry_asks_exactly_what_was_asked() -> None:
    pending = walk(("a?", ("a.png",), "A.")).asked("b?", [picture("b.png")])
    again = pending.replied(said("B.")).retried()
    assert again.request(Sampling()) == pending.request(Sampling())
    assert again.replied(said("C.")) == pending.replied(said("C."))


def test_a_retry_that_comes_to_nothing_leaves_the_former_reply() -> None:
    assert TWO.retried().rolled_back() == TWO


@pytest.mark.parametrize(("number", "left"), [(1, 0), (2, 1)])
def test_edit_takes_the_turn_and_all_that_follow(number: int, left: int) -> None:
    edited = TWO.edited(number)
    assert edited.turns == TWO.turns[:left]
    assert edited.asked("new").pictures == TWO.pictures[:left]


def test_clear_keeps_model_name_system_and_settings() -> None:
    fresh = Conversation("demo", name="n", system="s", settings={"temperature": 1.0})
    assert fresh.asked("a?").replied(said("A.")).cleared() == fresh


def test_forgotten_turns_are_on_record_and_out_of_the_prompt() -> None:
    less = TWO.without_oldest(1)
    assert prompt(less) == prompt(TWO)[2:]
    assert less.turns == TWO.turns
    assert [p.number for p in less.pictures_in_prompt] == [2, 3]
    assert less.undone().undone() == Conversation("demo")
    assert less.undone().asked("x").request(Sampling()).messages == (Message("user", ("x",)),)


def test_settings_and_names_change_one_at_a_time() -> None:
    base = Conversation("demo").with_setting("top_k", 3).with_setting("seed", 1)
    assert base.with_setting("top_k", None).settings == {"seed": 1}
    assert base.changed(model="other") == Conversation("other", settings=base.settings)
    with pytest.raises(ValueError, match="cannot change"):
        base.changed(model=None)
    with pytest.raises(ValueError, match="cannot change"):
        base.changed(turns="none")


def test_a_reply_without_a_word_is_no_example_for_the_model() -> None:
    silent = Conversation("demo").asked("a?").replied(Reply(" ", "cancelled"))
    assert prompt(silent) == [("user", ("a?",)), ("user", ("and?",))]


def test_what_was_said_before_an_interruption_counts() -> None:
    stopped = Conversation("demo").asked("a?").replied(Reply("It is", "cancelled"))
    assert stopped.turns[0].reply is not None
    assert stopped.turns[0].reply.is_interrupted
    assert ("assistant", ("It is",)) in prompt(stopped)


WRONG: dict[str, tuple[Callable[[Conversation], Conversation], str]] = {
    "drop 0": (lambda c: c.dropped(0), "there is no picture 0"),
    "drop 4": (lambda c: c.dropped(4), "there is no picture 4"),
    "drop twice": (lambda c: c.dropped(1).dropped(1), "picture 1 is already dropped"),
    "edit 0": (lambda c: c.edited(0), "there is no turn 0"),
    "edit 3": (lambda c: c.edited(3), "there is no turn 3"),
    "undo nothing": (lambda c: c.cleared().undone(), "there is nothing to undo"),
    "retry nothing": (lambda c: c.cleared().retried(), "there is nothing to retry"),
    "forget all": (lambda c: c.without_oldest(2), "cannot forget 2 of 2 turns"),
    "forget none": (lambda c: c.without_oldest(0), "cannot forget 0 of 2 turns"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_a_user_cannot_do_is_a_users_error(case: str) -> None:
    operation, message = WRONG[case]
    with pytest.raises(UsageError, match=message):
        operation(TWO)


@pytest.mark.parametrize(
    "operation",
    [
        lambda c: c.asked("x").asked("y"),
        lambda c: c.replied(said("x")),
        lambda c: c.rolled_back(),
        lambda c: c.asked("x").retried(),
        lambda c: c.request(Sampling()),
    ],
)
def test_a_turn_out_of_order_is_a_bug_of_ours(
    operation: Callable[[Conversation], Conversation],
) -> None:
    with pytest.raises(ValueError, match="pending"):
        operation(TWO)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("What is in [1]?", "What is in the first image?"),
        (
            "Compare picture [1] and the photo [3].",
            "Compare the first picture and the third photo.",
        ),
        ("[2]: what colour?", "The second image: what colour?"),
        ("Is x[1] code?", "Is x[1] code?"),
        ("And [9]?", "And [9]?"),
    ],
)
def test_the_model_reads_a_reference_in_words(text: str, words: str) -> None:
    assert prompt(TWO, text)[-1] == ("user", (words,))


def test_the_text_of_the_user_is_kept_to_the_letter() -> None:
    assert TWO.asked("What is in [1]?").turns[-1].text == "What is in [1]?"


def test_the_only_picture_is_just_the_image() -> None:
    only = walk(("Hi", ("a.png",), "Hello."))
    assert prompt(only, "What is in [1]?")[-1] == ("user", ("What is in the image?",))


def test_a_later_picture_does_not_change_how_an_earlier_turn_reads() -> None:
    before = walk(("Hi", ("a.png",), "Hello."), ("What is in [1]?", (), "A."))
    after = before.asked("And [2]?", [picture("b.png")])
    (*earlier, _) = prompt(before)
    messages = after.request(Sampling()).messages
    assert [(m.role, tuple(shown(p) for p in m.parts)) for m in messages[:-1]] == earlier


def test_ordinals_count_the_pictures_that_are_left() -> None:
    assert prompt(TWO.dropped(1), "What is in [3]?")[-1] == (
        "user",
        ("What is in the second image?",),
    )
    with pytest.raises(PromptError, match=r"`\[1\]`, and picture 1 was dropped"):
        TWO.dropped(1).check_marks("[2] [1]")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("And [5] [4]?", ("And ", "<e.png>", " ", "<d.png>", "?")),
        ("Is [4] like [1]?", ("<e.png>", "Is ", "<d.png>", " like the first image?")),
        # In the prompt, picture 4 comes after picture 5, which comes first.
        ("Is photo [4] red? [4]!", ("<e.png>", "Is photo ", "<d.png>", " red? the fifth image!")),
        ("<image> and <image>: [5]?", ("<d.png>", " and ", "<e.png>", ": the fifth image?")),
        ("<image>?", ("<d.png>", "<e.png>", "<image>?")),
        (r"\[4] and \<image>", ("<d.png>", "<e.png>", "[4] and <image>")),
        ("And `[4]`?", ("<d.png>", "<e.png>", "And `[4]`?")),
        ("[9]?", ("<d.png>", "<e.png>", "[9]?")),
    ],
)
def test_a_picture_stands_where_its_question_names_it(text: str, parts: tuple[str, ...]) -> None:
    asked = TWO.asked(text, [picture("d.png"), picture("e.png")])
    message = asked.request(Sampling()).messages[-1]
    assert tuple(shown(part) for part in message.parts) == parts
    later = asked.replied(said("x")).asked("And [4]?").request(Sampling()).messages
    assert later[-3] == message
    place = [part for part in parts if part in ("<d.png>", "<e.png>")].index("<d.png>")
    assert later[-1].text == f"And the {('fourth', 'fifth')[place]} image?"


def test_a_dropped_picture_leaves_its_number_in_its_place() -> None:
    asked = TWO.asked("Is <image> as <image>?", [picture("d.png"), picture("e.png")])
    message = asked.dropped(4).request(Sampling()).messages[-1]
    assert [shown(part) for part in message.parts] == ["Is [4] as ", "<e.png>", "?"]


@pytest.mark.parametrize(
    ("text", "staged", "error"),
    [
        ("<image>", 0, "the prompt has 1 `<image>`, and 0 pictures are given"),
        ("<image>", 2, "the prompt has 1 `<image>`, and 2 pictures are given"),
        ("[4]", 0, "the prompt has `[4]`, and there is no picture 4"),
        ("[5]", 1, "the prompt has `[5]`, and there is no picture 5"),
    ],
)
def test_a_mark_without_a_picture_is_refused(text: str, staged: int, error: str) -> None:
    with pytest.raises(PromptError) as caught:
        TWO.check_marks(text, staged)
    assert str(caught.value) == error
    TWO.check_marks(f"`{text}`", staged)


def test_a_mark_of_a_picture_that_is_left_out_tells_why_and_how_to_attach_it_again() -> None:
    asked = [("Hi", ("my dog.png",), "Hello."), ("And?", ("clipboard:",), "Yes.")]
    chat = walk(*asked, ("Well?", ("c.png",), "Well."))
    left_out = {
        1: (chat.without_oldest(1), "was forgotten with its question", "'my dog.png'"),
        2: (chat.dropped(2), "was dropped", "PATH"),
        3: (chat.with_missing(frozenset({chat.pictures[2].digest})), "cannot be found", "c.png"),
    }
    for number, (now, state, source) in left_out.items():
        with pytest.raises(PromptError) as caught:
            now.check_marks(f"What is in [{number}]?")
        error = caught.value
        assert str(error) == f"the prompt has `[{number}]`, and picture {number} {state}"
        assert error.hint == rf"`/image {source}` attaches it again; `\[{number}]` is text"
        now.check_marks(rf"What is in \[{number}]?")
    with pytest.raises(PromptError, match="was dropped"):
        chat.without_oldest(1).dropped(1).check_marks("[1]")


def test_numbers_are_text_in_a_chat_without_pictures() -> None:
    Conversation("demo").check_marks("As [1] and [2] say, (see [3])")
    text = r"As [1] and \[2] say"
    assert Conversation("demo").asked(text).request(Sampling()).messages[-1].parts == (text,)


@pytest.mark.parametrize(
    ("number", "word"),
    [(10, "tenth"), (11, "11th"), (21, "21st"), (22, "22nd"), (23, "23rd"), (112, "112th")],
)
def test_ordinals_are_those_of_english(number: int, word: str) -> None:
    many = walk(("Hi", tuple(f"{i}.png" for i in range(1, 121)), "Hello."))
    assert prompt(many, f"In [{number}]")[-1] == ("user", (f"In the {word} image",))


def test_a_model_that_sees_the_last_picture_only_is_shown_the_one_it_is_asked_about() -> None:
    def last(text: str) -> tuple[object, ...]:
        return TWO.asked(text).request(Sampling(), sees_last_only=True).messages[-1].parts

    assert last("What is in [1]?") == (attachment("a.png"), "What is in the image?")
    assert last("What is in [3]?") == ("What is in the image?",)
    assert last("What now?") == ("What now?",)
    assert last("[9]") == ("[9]",)

    def with_new(text: str) -> list[str]:
        asked = TWO.asked(text, [picture("d.png")])
        parts = asked.request(Sampling(), sees_last_only=True).messages[-1].parts
        return [shown(part) for part in parts]

    assert with_new("What is in [1]?") == ["<d.png>", "<a.png>", "What is in the image?"]
    assert with_new("Is [4] like [1]?") == ["<a.png>", "Is ", "<d.png>", " like the first image?"]
    assert with_new("Is [4] like [3]?") == ["Is ", "<d.png>", " like the first image?"]


def test_missing_pictures_are_out_of_the_prompt_and_come_back_when_found() -> None:
    gone = TWO.with_missing(frozenset({"digest of b.png"}))
    assert [p.source for p in gone.missing] == ["b.png"]
    assert [p.source for p in gone.pictures_in_prompt] == ["a.png", "c.png"]
    assert gone.with_missing(frozenset()) == TWO
