"""A reply becomes a caption by additions, after a check for degenerate replies."""

from __future__ import annotations

import random

import pytest

from idefics_cli.caption.executors.degenerate import degeneracy
from idefics_cli.caption.wording import Wording, trimmed, without_preamble
from idefics_cli.demo.scenes import caption, make_scene

GOOD = [
    "a red circle and a red square",
    "a red circle, a red square and a red triangle on a red background",
    "A",
    "42",
    "no",
    "The sign says no no no no.",
    "very, very, very, very tall",
    "Ha ha ha, laughs the man in the comic.",
    "A cat, a cat, a cat and another cat sit in a row.",
    "1. A dog\n2. A dog\n3. A cat\n4. A dog",
    "- red car\n- red car\n- blue car\n- red car",
    "1. chair 2. chair 3. chair 4. chair 5. table",
    "black and white, black and white stripes",
    "A number plate 000000000000 and the price 1,000,000,000,000.",
    "----------------------------------------\nA receipt\n----------------",
    "Wait......................",
    "WOOOOOOOOW is written on the wall",
    "hahahahahahaha",
    "猫が二匹、犬が三匹います。猫は白い。",
    "一只红色的猫和一只红色的狗在红色的房子前面",
    "Eine rote Katze und ein roter Hund sitzen vor einem roten Haus.",
    "The first shelf holds books. The second shelf holds books. The third shelf holds toys.",
    "The man is smiling. The woman is smiling. The man is tall. The man is smiling.",
    "a man and a woman and a man and a woman",
    "row, row, row your boat",
    "dog dog dog dog cat dog",
    "two people, three people, four people, five people, six people",
    "On the left is a red cup on a table. On the right is a blue cup on a table. In the middle is "
    "a green cup on a table. Behind them is a wall with a picture of a cup on a table. The cups "
    "are full, the table is empty apart from the cups, and the light comes from the left side.",
    "1girl, solo, long hair, blue eyes, blue hair, blue dress, smile, looking at viewer, sky",
    "https://example.org/a/a/a/a",
    "A scoreboard reads 0 0 0 0 0 0 and below it 1 0 1 0 1 0.",
    "🎉 party",
]
BAD = [
    "",
    "   \n",
    ". . .",
    "!!!",
    "🎉",
    "the the the the the the the the the the",
    "a cat " * 20,
    "A cat. " * 6,
    "a red circle and " * 8,
    "The dog is on the grass. " * 3,
    "A man in a suit.\nA man in a suit.\nA man in a suit.\n",
    "The image shows a kitchen with " + "a table, a chair, " * 10,
    "A good beginning of a caption, and then " + "on top of the hill " * 5,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "lalalalalalalalalalalalalalalalalalalala",
    "猫猫猫猫猫猫猫猫猫猫猫猫",
    "猫がいる" * 8,
    "\n".join(f"{number}. A tree in the park" for number in range(1, 20)),
    "and " * 9 + "a cat",
    "A tree, and a tree, and a tree, and a tree, and a tree, and a tree, and a tree",
    "The sky is blue. The sea is blue. " * 4,
    "no, no, no, no, no, no, no, no, no, no",
    " ".join(f"the {word} is on the table and the" for word in ("cup", "pen") * 12),
    "The dog is on the grass. A man walks by. The dog is on the grass. It is a sunny day. The "
    "dog is on the grass.",
    # Two phrases in a Thue-Morse sequence, in which nothing occurs three times in a row.
    " ".join(("a tall tree,", "a white house,")[n.bit_count() % 2] for n in range(32)),
    "<unk><unk><unk><unk><unk><unk><unk><unk>",
]


@pytest.mark.parametrize("text", GOOD, ids=range(len(GOOD)))
def test_a_caption_is_none_the_worse_for_words_that_come_again(text: str) -> None:
    assert degeneracy(text) is None


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_a_reply_that_is_empty_or_goes_in_circles_is_told(text: str) -> None:
    has_words = any(character.isalnum() for character in text)
    assert degeneracy(text) == ("goes in circles" if has_words else "is empty")


def test_no_true_caption_of_a_drawn_scene_is_taken_for_a_circle() -> None:
    captions = {caption(make_scene(random.Random(seed))) for seed in range(500)}

    assert len(captions) > 400
    assert not [text for text in captions if degeneracy(text)]


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("The image shows a cat.", "A cat."),
        ("This picture depicts two dogs.", "Two dogs."),
        ("the photo primarily features an old man", "An old man"),
        ("The image appears to show the sea", "The sea"),
        ("The image shows that a cat sleeps", "A cat sleeps"),
        ("The picture is of a small boat", "A small boat"),
        ("This is a photo of the sea.", "The sea."),
        ("An image of a man", "A man"),
        ("It's a picture showing a man", "A man"),
        ("In this image, we can see two dogs.", "Two dogs."),
        ("In the image there is a cat", "A cat"),
        ("In the picture, there are cats", "Cats"),
        ("In this photo a man waits", "A man waits"),
        ("In the image, the man waits", "The man waits"),
        ("I see a dog", "A dog"),
        ("Caption: a dog", "A dog"),
        ("**Caption:** The image shows a dog", "A dog"),
        ("Sure! Here is a short caption for the image: a cat", "A cat"),
        ("The image shows an iPhone", "An iPhone"),
        ("The image shows iPhones", "iPhones"),
        ("The image shows “a” cat", "“a” cat"),
        ("The image shows a photo of a dog on a wall", "A photo of a dog on a wall"),
        ("  The image shows a cat ", "A cat "),
    ],
)
def test_a_preamble_is_left_out(reply: str, text: str) -> None:
    assert without_preamble(reply) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The image shows",
        "The image shows.",
        "In this image, …",
        "Caption:",
        "a cat",
        "iPhone",
        "The image is black and white.",
        "The photo was taken at night.",
        "In the image below, a cat",
        "In the photo shop, a man waits",
        "The picture frame shows a cat",
        "In the center of the image is a dog.",
        "A painting of a cat",
        "A close-up photo of a cat",
        "There is a cat",
        "We can see that it is late.",
        "The images show cats",
        "A cat. The image shows it sleeping.",
    ],
)
def test_what_is_no_preamble_or_all_there_is_stays(text: str) -> None:
    assert without_preamble(text) == text


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("A cat. A do", "A cat."),
        ("A cat. A dog! A", "A cat. A dog!"),
        ("Is it? It i", "Is it?"),
        ('"It is." He sa', '"It is."'),
        ("Mr. Smith sits. He has a h", "Mr. Smith sits."),
        ("It is 3.5 m wide. And 2.", "It is 3.5 m wide. And 2."),
        ("1. A cat\n2. A do", "1. A cat"),
        ("- a cat\n- a dog\n- a bi", "- a cat\n- a dog"),
        ("猫がいる。犬が", "猫がいる。"),
        ("no end at all", "no end at all"),
        ("A cat by J. Doe and", "A cat by J. Doe and"),
        ("All of it.", "All of it."),
    ],
)
def test_what_was_cut_off_ends_with_a_whole_sentence(reply: str, text: str) -> None:
    assert trimmed(reply) == text


def test_only_what_was_cut_off_is_trimmed() -> None:
    reply = "A cat. A dog and"
    assert Wording(on_truncate="trim").finish(reply, "length") == "A cat."
    assert Wording(on_truncate="trim").finish(reply, "stop") == reply
    for choice in ("keep", "extend"):
        assert Wording(on_truncate=choice).finish(reply, "length") == reply


def test_nothing_is_done_that_was_not_asked_for() -> None:
    assert (
        Wording().finish(" The image shows a cat, ohwx\n", "stop") == "The image shows a cat, ohwx"
    )


def test_additions_are_exact_and_in_order() -> None:
    wording = Wording(prefix=" photo of ", suffix="…  ", trigger="ohwx man", strip_preamble=True)

    assert wording.finish("The image shows a cat", "stop") == "ohwx man,  photo of A cat…  "


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("a cat", "ohwx, a cat"),
        ("ohwx, a cat", "ohwx, a cat"),
        ("a photo of ohwx", "a photo of ohwx"),
        ("a photo of Ohwx", "ohwx, a photo of Ohwx"),
        ("ohwxy", "ohwx, ohwxy"),
        ("", ""),
    ],
)
def test_a_trigger_is_there_once_as_a_word(reply: str, text: str) -> None:
    assert Wording(trigger="ohwx").finish(reply, "stop") == text


def test_a_trigger_in_the_prefix_is_enough() -> None:
    wording = Wording(prefix="a photo of ohwx. ", trigger="ohwx")
    assert wording.finish("a cat", "stop") == "a photo of ohwx. a cat"
