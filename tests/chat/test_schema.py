"""`/schema`: answers of a chat are JSON until it ends, also in a continued chat."""

from __future__ import annotations

import json
from pathlib import Path

from idefics_cli.core.types import GenerationRequest
from tests.support.chat import world

TOLD = "\nAnswer as JSON with these fields:\n- caption (text)"


def names(request: GenerationRequest) -> list[str] | None:
    """Return the properties of the schema of *request*."""
    if request.constraint is None:
        return None
    return [*json.loads(request.constraint.text)["properties"]]


def test_answers_are_json_until_it_ends(tmp_path: Path) -> None:
    reply = '{"caption": "*a* _b_"}'
    here = world(tmp_path, reply, "free", "free")
    out, err, _ = here.talk(
        "/schema", "/schema caption", "What?", "/schema", "/schema -", "And now?"
    )
    assert reply in out
    first, second = here.engine.requests[:2]
    assert (names(first), names(second)) == (["caption"], None)
    assert first.messages[-1].text == f"What?{TOLD}"
    assert [message.text for message in second.messages] == ["What?", reply, "And now?"]
    assert "answers are free text; `/schema caption, people int` makes them JSON" in err
    assert "answers are JSON with caption" in err
    assert '{"type": "object", "properties": {"caption": {"type": "string"' in err


def test_a_session_keeps_the_schema_and_not_the_name_of_its_file(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    file.write_text('{"type": "object", "properties": {"caption": {"type": "string"}}}')
    here = world(tmp_path, '{"caption": "x"}', '{"caption": "y"}')
    here.talk(f"/schema {file}", "What?", "/save trip")
    file.unlink()
    here.talk("/clear", "/schema -", "/load trip", "And now?")
    assert names(here.engine.requests[-1]) == ["caption"]


def test_a_cut_answer_says_that_its_json_is_cut(tmp_path: Path) -> None:
    here = world(tmp_path, '{"caption": "a b c d e')
    _, err, _ = here.talk("/schema caption", "/set max_new_tokens=3", "What?")
    told = (
        "the answer was cut after 3 tokens, before its JSON was complete; `/set max_new_tokens=N`"
    )
    assert told in " ".join(err.split())
