"""`idefics chat` in a process of its own with a stand-in for a model, whose answers are long.

Run it in a terminal as `python -m tests.support.talking [OPTION]…`. The first word of a question
names the answer: `story` one long paragraph, `list` Markdown, `code` a block of code, `wide`
Chinese text, `fail` an error; any other word is repeated.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from threading import Event

from idefics_cli.cli.app import make_app
from idefics_cli.cli.services import Services
from idefics_cli.core.types import GenerationRequest, TokenChunk
from idefics_cli.engine.protocol import Prepared
from tests.support.commands import World
from tests.support.fakes import FakeEngine

_WORD_SECONDS = 0.02
PARAGRAPH = " ".join(f"word{number}" for number in range(1, 61)) + "."
"""One line that is wider than any terminal of the tests."""
MARKDOWN = (
    "# Shapes\n\nThere are **three** shapes in the picture, and each of them has a colour and a"
    " place that this line names:\n\n- a *red* circle on the left of the picture, which is the"
    " largest of the three\n- a `blue` square\n\nThat is all."
)
CODE = "Use this:\n\n```python\nfor shape in shapes:\n    print(shape)\n```\n\nThen run it."
_ANSWERS = {"story": PARAGRAPH, "list": MARKDOWN, "code": CODE, "wide": "漢字かな交じり文。" * 15}


class _SlowEngine(FakeEngine):
    """Streams its answers at the pace of a model."""

    def _stream(self, prepared: Prepared, cancel: Event | None) -> Iterator[TokenChunk]:
        for chunk in super()._stream(prepared, cancel):
            time.sleep(_WORD_SECONDS)
            yield chunk


def answer(request: GenerationRequest) -> str:
    """Return the answer that the first word of the last question names."""
    text = request.messages[-1].text
    word = text.split()[0].lower()
    if word == "fail":
        raise RuntimeError("the stand-in fails")
    return _ANSWERS.get(word, f"You said: {text}")


def main() -> None:
    """Run a chat."""
    standing_in = World(_SlowEngine(answer)).services
    own = Services()
    services = Services(
        make_factory=standing_in.make_factory,
        probe=standing_in.probe,
        find_facts=standing_in.find_facts,
        clock=own.clock,
    )
    make_app()(args=["chat", *sys.argv[1:]], prog_name="idefics", obj=services)


if __name__ == "__main__":
    main()
