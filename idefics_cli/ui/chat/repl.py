"""The chat at the keyboard: read a line, run it, show the answer, and read the next line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from idefics_cli.chat.attachments import StagedPicture
from idefics_cli.chat.commands.dispatch import Dispatcher
from idefics_cli.chat.commands.slash_command import CommandResult
from idefics_cli.chat.descriptions import GOES_WITH_NEXT, describe_staged
from idefics_cli.chat.store.sessions import OpenSession
from idefics_cli.chat.unexpected import as_shown_error
from idefics_cli.core.errors import ContextError, PromptError
from idefics_cli.core.text import printable
from idefics_cli.core.types import Sampling
from idefics_cli.core.units import counted
from idefics_cli.ui.chat.editor import write_in_editor
from idefics_cli.ui.chat.line_input import LineInput, Stopped
from idefics_cli.ui.chat.preview import Previews
from idefics_cli.ui.chat.reply import show_reply
from idefics_cli.ui.terminal.clipboard import copy_text
from idefics_cli.ui.terminal.console import Console
from idefics_cli.ui.terminal.fold import fold
from idefics_cli.ui.terminal.keyboard import silent_keyboard

_NEARLY_FULL = 0.85
_NAME_WIDTH = 30
_MOST_DRAWN = 3  # more drawings would fill the screen
_TWO_COLUMNS = 2 * _NAME_WIDTH
_LEAVE_HINT = "Ctrl-D or /exit leaves"
_RECALL_NOTE = "Up brings the question back"


@dataclass(frozen=True, slots=True)
class _LineBegin:
    """How the next line begins, after a line was run.

    Attributes:
        draft: A text that already stands in the line, and that the user can edit.
        recall: A text that one press of Up brings into the line.
        is_over: Whether there is no next line, because the chat ends.
    """

    draft: str = ""
    recall: str = ""
    is_over: bool = False


class Repl:
    """The read-eval-print loop of one chat.

    Args:
        dispatcher: Runs the lines; the caller closes its chat.
        console: Answers go to its stdout, everything else to its stderr.
        lines: The source of the lines.
        previews: Shows pictures; None draws them with half blocks.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        console: Console,
        lines: LineInput,
        previews: Previews | None = None,
    ) -> None:
        self._dispatcher = dispatcher
        self._chat = dispatcher.chat
        self._console = console
        self._lines = lines
        self._previews = previews or Previews(console)
        self._is_warned = False

    def run(self, *, draft: str = "") -> None:
        """Read lines and answer questions until Ctrl-D or `/exit`.

        Args:
            draft: A text that already stands in the first line, and that the user can edit.

        Raises:
            IdeficsError: If no model can be loaded; the text typed so far has been shown.
        """
        begin = _LineBegin(draft)
        while not begin.is_over:
            begin = self._read_and_run(begin)

    def _read_and_run(self, begin: _LineBegin) -> _LineBegin:
        """Read one line and run it; return how the next line begins."""
        self._show_load_results()
        if self._chat.model.loading.error is not None:
            begin = self._go_on_without(begin)
        try:
            line = self._lines.read(self._prompt(), text=begin.draft, recall=begin.recall)
        except KeyboardInterrupt:
            self._chat.turns.editing = None
            self._console.note(_LEAVE_HINT)
            return _LineBegin()
        except EOFError:
            if self._chat.model.loading.error is not None:
                self._go_on_without(_LineBegin())
            return _LineBegin(is_over=True)
        except Stopped as stopped:
            return _LineBegin(stopped.text)  # `_go_on_without` then shows the reason
        try:
            with silent_keyboard():
                return self._show_result(self._dispatcher.run(line))
        except KeyboardInterrupt:  # Ctrl-C while the command runs, for example a download
            self._console.note("stopped")
        except Exception as error:  # a failure of one line must not end the chat
            self._console.error(as_shown_error(error))
        return _LineBegin(recall="" if line.startswith("/") else line)

    def _go_on_without(self, begin: _LineBegin) -> _LineBegin:
        """Go back to the former model after the new one could not be loaded; return *begin*.

        Raises:
            IdeficsError: If there is no former model. The error is the reason why the model
                cannot be loaded.
        """
        error = self._chat.model.loading.error
        if error is None:
            raise RuntimeError("the model can be loaded")
        if not self._chat.go_back():
            if text := (begin.draft or begin.recall).strip():
                self._console.tell(f"not asked: {text}")
            raise error
        self._console.error(error)
        self._console.note(f"{self._chat.model.name} answers again")
        if begin.recall:
            self._console.note(_RECALL_NOTE)
        return begin

    def _show_load_results(self) -> None:
        """Show warnings of the loaded model, and an error if staged pictures cannot be counted."""
        for warning in self._chat.model.loading.take_warnings():
            self._console.warn(warning)
        try:
            self._chat.count_staged()
        except KeyboardInterrupt:
            self._console.note("stopped")
        except Exception as error:  # as in `_read_and_run`
            self._console.error(as_shown_error(error))

    def show_attached(
        self, attached: Sequence[StagedPicture], first: int, *, is_asked: bool = False
    ) -> None:
        """Draw pictures, unless they are many, and show their names, sizes and tokens.

        Args:
            attached: The pictures.
            first: The number of the first of these pictures.
            is_asked: Whether the pictures belong to a question that was just asked.
        """
        shows = self._chat.display("preview") and len(attached) <= _MOST_DRAWN
        for number, staged in enumerate(attached, start=first):
            if shows and staged.thumbnail is not None:
                self._previews.show(staged.thumbnail)
            line = describe_staged(number, staged, self._dispatcher.folder)
            self._tell(line if is_asked else line + GOES_WITH_NEXT)

    def _prompt(self) -> str:
        if self._chat.turns.editing is not None:
            return f"edit {self._chat.turns.editing} > "
        count = len(self._chat.turns.staged)
        parts = [counted(count, "picture")] if count else []
        if self._console.accessible:  # a screen reader may not speak the sign `>`
            parts.append("your turn")
        return " ".join([", ".join(parts), "> "]).lstrip()

    def _show_result(self, result: CommandResult) -> _LineBegin:
        """Show *result* and do what it asks for; return how the next line begins."""
        total = len(self._chat.conversation.pictures)
        if not result.answers:
            total += len(self._chat.turns.staged)
        first = total - len(result.attached) + 1
        self.show_attached(result.attached, first, is_asked=result.answers)
        for name, summary in result.rows:
            self._tell_row(name, summary)
        for line in result.lines:
            self._tell(line)
        if result.copied:
            text = printable(result.copied)
            self._tell(copy_text(text, self._console.err, self._console.environ))
        if result.wants_editor:
            return self._ask_from_editor()
        if result.answers:
            return self._answer(result.sampling)
        return _LineBegin(result.draft, is_over=result.is_over)

    def _ask_from_editor(self) -> _LineBegin:
        """Ask the question that the user writes in an editor; return how the next line begins."""
        text = write_in_editor(self._console.environ)
        if not text.strip():
            self._tell("nothing was written")
            return _LineBegin()
        try:
            self._chat.check_marks(text)
        except PromptError as error:
            self._console.error(error)
            return _LineBegin(text)
        self._chat.ask(text)
        return self._answer(None)

    def _tell(self, text: str, *, indent: str = "  ") -> None:
        """Write *text* to stderr, and break its lines between words."""
        if not self._console.draws:
            self._console.tell(text)
            return
        width = self._console.err_columns - 1
        for line in printable(text).split("\n"):
            for part in fold(line, width, indent=len(indent)):
                self._console.tell(part)

    def _tell_row(self, name: str, summary: str) -> None:
        """Write a name and a text to stderr.

        They stand side by side on a wide terminal and for a screen reader, otherwise in two lines.
        """
        if not self._console.draws:
            self._console.tell(f"{name}: {summary}")
        elif self._console.err_columns >= _TWO_COLUMNS:
            self._tell(f"{name:{_NAME_WIDTH}}{summary}", indent=" " * _NAME_WIDTH)
        else:
            self._console.tell(name)
            self._tell(f"  {summary}")

    def _answer(self, sampling: Sampling | None) -> _LineBegin:
        """Answer the pending question; if there is no answer, Up brings the question back."""
        pending = self._chat.conversation.pending
        if pending is None:
            raise RuntimeError("nothing is pending")
        question = "" if pending.former else pending.text
        try:
            finish = show_reply(self._console, self._chat, sampling)
        except ContextError as error:
            self._console.error(error)
            return self._choose(question, sampling) if question else _LineBegin()
        except Exception as error:  # as in `_read_and_run`
            if error is not self._chat.model.loading.error:
                self._console.error(as_shown_error(error))
                if question:
                    self._console.note(_RECALL_NOTE)
            return _LineBegin(recall=question)
        if finish == "cancelled":
            return self._tell_interrupted(question)
        if finish == "length":
            self._tell_cut()
        elif self._is_empty:
            self._console.note(
                "the answer is empty: the model ended it before the first word;"
                " `/retry temperature=0.7` asks again, `/undo` takes the question back"
            )
        self._warn_of_context()
        if self._console.draws:
            self._console.tell("")
        return _LineBegin()

    def _tell_interrupted(self, question: str) -> _LineBegin:
        turns = self._chat.conversation.turns
        reply = turns[-1].reply if turns else None
        if reply is not None and reply.is_interrupted:
            self._console.note("interrupted; the answer so far is kept")
            return _LineBegin()
        self._console.note("interrupted before the first word; the question is taken back")
        if question:
            self._console.note(_RECALL_NOTE)
        return _LineBegin(recall=question)

    @property
    def _is_empty(self) -> bool:
        reply = self._chat.conversation.turns[-1].reply
        return reply is not None and not reply.text.strip()

    def _tell_cut(self) -> None:
        used = self._chat.used()
        if used is not None and used.room < 1:
            self._console.note("the answer was cut: the context is full")
            return
        limit = self._chat.sampling.max_new_tokens
        early = ", before its first word" if self._is_empty else ""
        if self._chat.form:
            early = ", before its JSON was complete"
        self._console.note(
            f"the answer was cut after {counted(limit, 'token')}{early}; `/set max_new_tokens=N`"
        )

    def _warn_of_context(self) -> None:
        used = self._chat.used()
        is_near = used is not None and used.prompt_tokens > _NEARLY_FULL * used.context_tokens
        if used is not None and is_near and not self._is_warned:
            self._console.warn(
                f"{used.prompt_tokens} of {used.context_tokens} tokens of the context are used;"
                " when it is full, you choose what the model forgets"
            )
        self._is_warned = is_near

    def _choose(self, question: str, sampling: Sampling | None) -> _LineBegin:
        """Let the user choose what to leave out so that *question* fits into the context.

        If the user presses Enter without a number, nothing is left out.
        """
        ways = self._ways_out(question)
        for number, (text, _) in enumerate(ways, start=1):
            self._tell(f"{number}: {text}")
        self._tell("Enter: change the question")
        try:
            choice = self._lines.read("choose: ").strip()
        except (KeyboardInterrupt, EOFError):
            return _LineBegin(recall=question)
        if choice not in map(str, range(1, len(ways) + 1)):
            return _LineBegin(question)
        ways[int(choice) - 1][1]()
        self._chat.ask(question)
        return self._answer(sampling)

    def _start_new(self) -> None:
        self._chat.start_new(keeps_staged=True)

    def _ways_out(self, question: str) -> list[tuple[str, Callable[[], None]]]:
        """Return the ways to make room for *question*: a text for the user, and a function."""
        chat = self._chat
        session, ways = chat.turns.session, list[tuple[str, Callable[[], None]]]()
        if turns := chat.turns_to_forget(question):
            oldest = "question" if turns == 1 else f"{turns} questions"
            ways.append((f"leave out the oldest {oldest}", partial(session.forget, turns)))
        if pictures := chat.pictures_to_drop(question):
            names = ", ".join(f"[{number}]" for number in pictures)
            ways.append((f"leave out {names}", partial(_drop, session, pictures)))
        if chat.conversation.turns:
            ways.append(("start a new conversation with this question", self._start_new))
        return ways


def _drop(session: OpenSession, pictures: Sequence[int]) -> None:
    for number in pictures:
        session.drop(number)
