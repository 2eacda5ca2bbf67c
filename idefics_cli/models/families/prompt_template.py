"""Prompts made with the chat template of a checkpoint, which may be any program in Jinja."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from jinja2 import TemplateError

from idefics_cli.core.errors import IdeficsError, ModelError, PromptError
from idefics_cli.core.threads import in_background
from idefics_cli.core.types import Role
from idefics_cli.core.units import counted
from idefics_cli.models.families.spec import IMAGE_TOKEN

Turn: TypeAlias = tuple[Role, Sequence[str | None]]
"""The role and the content of a message: texts, and None for each picture."""


class Renderer(Protocol):
    """What renders a conversation: a processor of transformers, or `BoundedTemplate`."""

    def apply_chat_template(
        self, conversation: list[dict[str, object]], *, add_generation_prompt: bool
    ) -> str:
        """Return the prompt of *conversation*."""
        ...


_PROBE = "What is it?"
# A template takes milliseconds. The limit ends a template with an endless loop.
_PROBE_SECONDS = 10.0


class PromptTemplate:
    """Renders conversations with the chat template of a checkpoint.

    Most templates take the content of a message as a list of parts. Templates of many checkpoints
    that were fine-tuned on text take a string instead. They get a string with `<image>` for each
    picture. A first prompt, the probe, shows which form a template takes.

    Args:
        renderer: Renders the template of the checkpoint.
        probe_seconds: Longest time for the probe.

    Attributes:
        fault: Why the template cannot be used, as the end of a sentence; None if it works.
    """

    def __init__(self, renderer: Renderer, *, probe_seconds: float = _PROBE_SECONDS) -> None:
        self._renderer = renderer
        self._form: Callable[[Sequence[str | None]], object] = _as_parts
        self.fault = self._choose_form(probe_seconds)

    def render(self, turns: Sequence[Turn]) -> str:
        """Return the prompt of a conversation, with one `<image>` for each picture.

        A text may hold further `<image>`, each for a video. After an answer of the assistant, no
        further answer begins.

        Raises:
            PromptError: If the template refuses the conversation, or has no place for a picture.
            ModelError: If the template fails.
        """
        try:
            text = self._apply(turns)
        except TemplateError as error:
            # The template of a fine-tuned checkpoint may refuse a role or an order of turns.
            raise PromptError(f"the model's chat template refuses this: {error}") from error
        except (MemoryError, IdeficsError):
            raise
        except Exception as error:  # a template is a program: it raises any class
            raise ModelError(
                f"the model's chat template fails: {_describe(error)}",
                hint="correct the template; `idefics ask --raw` needs none",
            ) from error
        parts = [part for _, content in turns for part in content]
        pictures = sum(1 if part is None else part.count(IMAGE_TOKEN) for part in parts)
        if (marks := text.count(IMAGE_TOKEN)) != pictures:
            raise PromptError(
                f"the model's chat template writes {marks} `{IMAGE_TOKEN}` for "
                + counted(pictures, "picture"),
                hint="give one picture, in the last message",
            )
        return text

    def _choose_form(self, probe_seconds: float) -> str | None:
        """Choose the form of content that the template takes; if it takes none, return why."""
        faults = []
        for form in (_as_parts, _as_text):
            self._form = form
            work = in_background(lambda: self._apply([("user", [None, _PROBE])]), name="template")
            try:
                text = work.result(timeout=probe_seconds)
            except TimeoutError:
                return f"does not end within {counted(float(probe_seconds), 'second')}"
            except Exception as error:  # as in `render`
                if type(error) is TemplateError:
                    # The template refuses the probe by `raise_exception`, for example because it
                    # wants a system message. This is no fault.
                    return None
                faults.append(f"fails: {_describe(error)}")
                continue
            marks = text.count(IMAGE_TOKEN)
            if marks == 1 and _PROBE in text:
                return None
            lost = f"{marks} `{IMAGE_TOKEN}` for a picture" if marks != 1 else "no text"
            faults.append(f"writes {lost}")
        self._form = _as_parts
        return faults[0]

    def _apply(self, turns: Sequence[Turn]) -> str:
        conversation: list[dict[str, object]] = [
            {"role": role, "content": self._form(content)} for role, content in turns
        ]
        asks = turns[-1][0] != "assistant"
        text = self._renderer.apply_chat_template(conversation, add_generation_prompt=asks)
        if not isinstance(text, str):
            raise TypeError("the template gives no text")
        return text


def _as_parts(content: Sequence[str | None]) -> object:
    # A text alone becomes a list of one part: templates for parts ignore content that is a plain
    # string.
    return [
        {"type": "image"} if part is None else {"type": "text", "text": part} for part in content
    ]


def _as_text(content: Sequence[str | None]) -> object:
    return "".join(IMAGE_TOKEN if part is None else part for part in content)


def _describe(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
