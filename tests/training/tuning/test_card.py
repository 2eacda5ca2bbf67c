"""The model card of a run."""

from __future__ import annotations

import pytest

from idefics_cli.training.tuning.card import CardFacts, card, license_in
from idefics_cli.training.tuning.job import TuneChoices


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\ntags: [a]\nlicense: apache-2.0\n---\n# A", "apache-2.0"),
        ("---\nlicense: 'mit'\n---", "mit"),
        ("---\ntags: [a]\n---\nlicense: mit", None),
        ("license: mit", None),
        ("---\nlicense: [a, b]\n---", None),
        ("", None),
    ],
)
def test_the_license_is_that_of_the_front_matter(text: str, expected: str | None) -> None:
    assert license_in(text) == expected


def test_a_card_names_the_base_and_its_license() -> None:
    facts = CardFacts("my-style", "a/b", "photos", 9, 1, 100, 20, 20, "1", license="mit")
    text = card(facts, TuneChoices(), [], [])
    assert text.startswith('---\nbase_model: "a/b"\nlicense: mit\n')
    assert "The license of `a/b`, mit, applies to it, too." in text
    assert license_in(text) == "mit"
