"""The host reads nothing back from the device to start a request, because it knows it already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from idefics_cli.core.types import Sampling
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.local.serving.active_rows import ActiveRows
from idefics_cli.engine.local.serving.prompt_run import PromptRun
from tests.support import tiny
from tests.support.prompts import CONVERSATIONS, as_request, reopen
from tests.support.recording import gpu_inference, waits_for_host


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the operations for which the host waits while requests start."""
    found: list[str] = []

    def watch(owner: type, name: str) -> None:
        method = getattr(owner, name)

        def watched(*arguments: Any, **options: Any) -> object:
            with waits_for_host() as here:
                result = method(*arguments, **options)
            found.extend(here)
            return result

        monkeypatch.setattr(owner, name, watched)

    watch(PromptRun, "advance")
    watch(ActiveRows, "admit")
    return found


# The embedding of IDEFICS-1 in transformers looks for image tokens itself.
@pytest.mark.parametrize("kind", [kind for kind in tiny.CHATTING if kind != "idefics"])
@pytest.mark.parametrize("conversation", ["no image", "two images", "later turns"])
def test_a_request_starts_without_a_wait(
    conversation: str, kind: str, endless: Callable[[str], LocalEngine], waits: list[str]
) -> None:
    few = Sampling(max_new_tokens=3)
    with reopen(endless(kind), gpu_inference) as engine:
        prepared = as_request(engine, CONVERSATIONS[conversation], sampling=few)
        # The vision model of transformers makes the host wait, so the features are known here.
        expected = engine.complete([prepared])[0]
        engine.inference.prefix.drop()
        waits.clear()
        answer = engine.complete([prepared])[0]
    assert (answer.token_ids, answer.reused_tokens) == (expected.token_ids, 0)
    assert waits == []
