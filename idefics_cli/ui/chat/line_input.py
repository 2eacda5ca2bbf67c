"""Line input for a chat: a full line editor, and a plain one that never redraws its line."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO

from idefics_cli.chat.commands.completion import Candidate
from idefics_cli.core.text import one_line
from idefics_cli.ui.chat.history import LONGEST_HISTORY, open_history, stored_lines
from idefics_cli.ui.chat.reflow import erase_wrapped_rows
from idefics_cli.ui.terminal.keyboard import echoing_keyboard, has_typed_text

if TYPE_CHECKING:
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.input import Input
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.output import Output

QUOTES = '"""'
_CONTINUED = "... "
Complete = Callable[[str], Iterable[Candidate]]
"""A function that gets the text before the cursor, and returns what can complete its last word."""
_MENU_ROWS = 6
_WATCH_SECONDS = 0.2


class Stopped(Exception):
    """Raised if no model can answer any more; *text* is what the user has typed so far."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class LineInput(Protocol):
    """The source of the lines of a chat."""

    def read(self, prompt: str, *, text: str = "", recall: str = "") -> str:
        """Return the text typed after *prompt*.

        Args:
            prompt: What to show before the line.
            text: Text that already stands in the line, and that the user can edit.
            recall: A line to add to the history, so that one press of Up brings it back; "" adds
                nothing.

        Raises:
            EOFError: After Ctrl-D on an empty line, or when the terminal is closed.
            KeyboardInterrupt: After Ctrl-C on an empty line.
            Stopped: If no model can answer any more.
        """
        ...


class TypedAhead:
    """A source of lines that begins with the lines typed before the program read the keyboard.

    Args:
        typed: The text that was typed. Each complete line of it is returned as one line. An
            unfinished last line is put into the next line input, where the user can edit it.
        lines: The source of all later lines.
        tell: Shows a complete line of *typed* with the prompt before it.
    """

    def __init__(self, typed: str, lines: LineInput, tell: Callable[[str], None]) -> None:
        # Enter may arrive as a carriage return or as a line feed.
        *self._sent, self._begun = typed.replace("\r", "\n").split("\n")
        self._lines = lines
        self._tell = tell

    def read(self, prompt: str, *, text: str = "", recall: str = "") -> str:
        """See `LineInput.read`."""
        if text or not self._sent:
            if not text:
                text, self._begun = self._begun, ""
            return self._lines.read(prompt, text=text, recall=recall)
        typed = self._sent.pop(0)
        while is_open(typed):
            if not self._sent:
                begun, self._begun = self._begun, ""
                return self._lines.read(prompt, text=f"{typed}\n{begun}", recall=recall)
            typed += "\n" + self._sent.pop(0)
        self._tell(prompt + typed)
        return unquoted(typed)


def is_open(text: str) -> bool:
    """Whether *text* begins with three quotes that are not closed yet."""
    stripped = text.strip()
    return stripped.startswith(QUOTES) and (
        len(stripped) < 2 * len(QUOTES) or not stripped.endswith(QUOTES)
    )


def unquoted(text: str) -> str:
    """Return *text* without the three quotes around it."""
    stripped = text.strip()
    if stripped.startswith(QUOTES):
        return stripped.removeprefix(QUOTES).removesuffix(QUOTES).strip("\n")
    return stripped


class DrawnInput:
    """A line editor that has a menu of completions, multi-line texts and a searchable history.

    Args:
        out: The terminal to draw on.
        complete: Returns the completions.
        history: The file of the history; None keeps the history for this run only.
        is_over: Returns whether no model can answer any more; it is called several times a second.
        wraps_anew: Whether the terminal wraps long lines again after its width has changed.
    """

    def __init__(
        self,
        out: TextIO,
        complete: Complete,
        history: Path | None,
        is_over: Callable[[], bool] = lambda: False,
        *,
        wraps_anew: bool = False,
    ) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.application import get_app_session
        from prompt_toolkit.lexers import SimpleLexer

        from idefics_cli.ui.terminal.answers import without_answers

        self._is_over = is_over
        self._session: PromptSession[str] = PromptSession(
            multiline=True,
            prompt_continuation=_CONTINUED,
            # Questions are bold, so that the user finds them again among long answers.
            lexer=SimpleLexer("bold"),
            completer=completer(complete),
            complete_while_typing=True,
            history=open_history(history),
            key_bindings=_keys(),
            enable_open_in_editor=True,
            enable_suspend=True,
            tempfile_suffix=".md",
            reserve_space_for_menu=_MENU_ROWS,
            input=without_answers(get_app_session().input),
            output=_silent_output(out),
        )
        if wraps_anew:
            erase_wrapped_rows(self._session.app)

    def read(self, prompt: str, *, text: str = "", recall: str = "") -> str:
        """See `LineInput.read`."""
        history = self._session.history
        if recall and recall not in map(unquoted, history.get_strings()[-1:]):
            history.append_string(recall)
        while True:
            typed = self._session.prompt([("bold", prompt)], default=text, pre_run=self._begin)
            if not _is_taken_back(self._session.app.input):
                return unquoted(typed)
            text = ""  # Up brings the line back, as after Ctrl-C before Enter

    def _begin(self) -> None:
        self._session.app.create_background_task(self._watch())

    async def _watch(self) -> None:
        import asyncio

        while not self._is_over():
            await asyncio.sleep(_WATCH_SECONDS)
        buffer = self._session.default_buffer
        buffer.append_to_history()  # so that Up brings the text back in the next run
        self._session.app.exit(exception=Stopped(buffer.text), style="class:aborting")


class PlainInput:
    """Line input without redrawing, for screen readers and terminals that cannot move the cursor.

    Readline edits the line if Python has that module; otherwise the terminal does.

    Args:
        tell: Shows a text to the user. Without readline, no text can be put into the line, so it
            is shown before the prompt instead.
        complete: Returns the completions.
        history: The file of the history; None keeps the history for this run only.
        has_typed: Returns whether typed text has not been read yet; see `has_typed_text`.
    """

    def __init__(
        self,
        tell: Callable[[str], None],
        complete: Complete,
        history: Path | None,
        has_typed: Callable[..., bool] = has_typed_text,
    ) -> None:
        self._tell = tell
        self._complete = complete
        self._history = history
        self._has_typed = has_typed
        self._found: list[str] = []
        self._is_loaded = False

    def read(self, prompt: str, *, text: str = "", recall: str = "") -> str:
        """See `LineInput.read`."""
        # If more text arrives together with the end of a line, the text was pasted, and its lines
        # are one question. Lines that were typed while the model answered arrive together, too, but
        # each of them is a question. Those lines are there before this line is read.
        is_typed_ahead = self._has_typed(wait_seconds=0.0)
        try:
            typed = self._line(prompt, text, recall)
            takes_paste = not is_typed_ahead and not typed.startswith("/")
            while is_open(typed) or (takes_paste and self._has_typed()):
                typed += "\n" + self._line(_CONTINUED, "", "")
        except (KeyboardInterrupt, EOFError):
            self._tell("")  # moves to a new line after the prompt
            raise
        self._add_to_history(typed)
        return unquoted(typed)

    def _line(self, prompt: str, text: str, recall: str) -> str:
        try:
            import readline
        except ImportError:
            if text or recall:
                self._tell(f"to send again: {text or recall}")
            return _typed(prompt)
        if not self._is_loaded:
            self._load()
        last = readline.get_history_item(readline.get_current_history_length())
        if recall and recall != last:
            readline.add_history(recall.replace("\n", " "))
        readline.set_startup_hook(lambda: readline.insert_text(text.replace("\n", " ")))
        try:
            return _typed(prompt)
        finally:
            readline.set_startup_hook(None)

    def _load(self) -> None:
        import readline

        self._is_loaded = True
        readline.set_completer(self._candidate)
        readline.set_completer_delims(" \t\n")
        readline.parse_and_bind("tab: complete")
        # With bracketed paste, some terminals leave escape sequences around the pasted text.
        readline.parse_and_bind("set enable-bracketed-paste off")
        readline.set_auto_history(False)
        readline.set_history_length(LONGEST_HISTORY)
        if self._history is not None:
            for line in stored_lines(self._history):
                readline.add_history(unquoted(line).replace("\n", " "))

    def _add_to_history(self, typed: str) -> None:
        if not typed.strip():
            return
        open_history(self._history).store_string(typed)
        with contextlib.suppress(ImportError):
            import readline

            readline.add_history(unquoted(typed).replace("\n", " "))

    def _candidate(self, word: str, state: int) -> str | None:
        import readline

        if state == 0:
            line = readline.get_line_buffer()[: readline.get_endidx()]
            begin = readline.get_begidx()
            self._found = [
                line[begin : len(line) - candidate.replaces] + candidate.text
                for candidate in self._complete(line)
                if len(line) - candidate.replaces >= begin
            ]
        return self._found[state] if state < len(self._found) else None


def _is_taken_back(keyboard: Input) -> bool:
    """Whether Ctrl-C was pressed right after Enter; it then arrives as a key, not as a signal."""
    from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
    from prompt_toolkit.keys import Keys

    presses = [*get_typeahead(keyboard), *keyboard.read_keys()]
    ends = [place + 1 for place, press in enumerate(presses) if press.key == Keys.ControlC]
    store_typeahead(keyboard, presses[ends[-1] if ends else 0 :])
    return bool(ends)


def _silent_output(out: TextIO) -> Output:
    """Return the output of prompt_toolkit to *out*, which asks the terminal nothing."""
    from prompt_toolkit.output import create_output

    output = create_output(stdout=out)
    # prompt_toolkit would ask for the position of the cursor (CPR). Over a slow connection the
    # answer arrives late and ends up in the typed text. If no answer arrives, prompt_toolkit
    # prints a warning into the chat.
    if hasattr(output, "enable_cpr"):
        output.enable_cpr = False
    return output


def _typed(prompt: str) -> str:
    # Readline reads the echo mode of the terminal when it begins a line, and shows no keys if the
    # mode is off.
    with echoing_keyboard():
        return input(prompt)


def completer(complete: Complete) -> Completer:
    """Return *complete* for prompt-toolkit; its menu shows no character that moves the cursor."""
    from prompt_toolkit.completion import Completer as Base
    from prompt_toolkit.completion import Completion

    class Adapter(Base):
        def get_completions(
            self, document: Document, complete_event: CompleteEvent
        ) -> Iterator[Completion]:
            for candidate in complete(document.text_before_cursor):
                yield Completion(
                    candidate.text,
                    -candidate.replaces,
                    display=one_line(candidate.text),
                    display_meta=one_line(candidate.description),
                )

    return Adapter()


def _keys() -> KeyBindings:
    from prompt_toolkit.enums import DEFAULT_BUFFER
    from prompt_toolkit.filters import has_focus
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.keys import Keys

    keys = KeyBindings()
    in_line = has_focus(DEFAULT_BUFFER)  # these keys have other meanings in the history search

    @keys.add("enter", filter=in_line)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state and buffer.complete_state.current_completion:
            buffer.complete_state = None  # accepts the chosen word; the next Enter sends the line
        elif is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    # The chat does not ask for the mouse, but pasted colours such as ESC [31m look like its events,
    # and prompt_toolkit raises an error for events without a position.
    @keys.add(Keys.Vt100MouseEvent)
    def _(event: KeyPressEvent) -> None:
        pass

    @keys.add("escape", "enter", filter=in_line)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c", filter=in_line)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if not buffer.text:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")
            return
        # Ctrl-C clears the line, and Up brings it back.
        buffer.append_to_history()
        buffer.reset()

    return keys
