"""The chat at the keyboard: a line is read, taken, answered, and the next one read."""

from __future__ import annotations

from collections.abc import Sequence

from idefics_cli.chat.attachments import StagedPicture
from idefics_cli.chat.commands.dispatch import take
from idefics_cli.chat.commands.slash import GOES, describe
from idefics_cli.chat.commands.table import CommandResult
from idefics_cli.chat.dialogue import Chat
from idefics_cli.core.errors import ContextError, IdeficsError
from idefics_cli.core.text import printable
from idefics_cli.core.types import Sampling
from idefics_cli.ui.chat.line_input import LineInput, Stopped
from idefics_cli.ui.chat.preview import Previews
from idefics_cli.ui.chat.reply import show_reply
from idefics_cli.ui.terminal.console import Console
from idefics_cli.ui.terminal.fold import fold

_NEARLY_FULL = 0.85
_NAME_WIDTH = 30
_TWO_COLUMNS = 2 * _NAME_WIDTH
_LEAVE_HINT = "Ctrl-D or /exit leaves"


class Repl:
    """Talks with one person.

    Args:
        chat: The conversation; the caller closes it.
        console: Answers go to its stdout, all else to its stderr.
        lines: Where lines come from.
        previews: Shows pictures; None draws them with half blocks.
    """

    def __init__(
        self, chat: Chat, console: Console, lines: LineInput, previews: Previews | None = None
    ) -> None:
        self._chat = chat
        self._console = console
        self._lines = lines
        self._previews = previews or Previews(console)
        self._is_warned = False

    def run(self, *, draft: str = "") -> None:
        """Read and answer until Ctrl-D or `/exit`.

        Args:
            draft: A text to offer for editing first.

        Raises:
            IdeficsError: If no model can be loaded; what was typed has been told.
        """
        is_over = False
        while not is_over:
            self._tell_loaded()
            if self._chat.model.loading.error is not None:
                draft = self._go_on_without(draft)
            try:
                line = self._lines.read(self._prompt(), text=draft)
            except KeyboardInterrupt:
                draft, self._chat.turns.editing = "", None
                self._console.note(_LEAVE_HINT)
                continue
            except EOFError:
                if self._chat.model.loading.error is not None:
                    self._go_on_without("")
                break
            except Stopped as stopped:
                draft = stopped.text  # why, the next round tells
                continue
            draft, is_over = self._done(line)

    def _done(self, line: str) -> tuple[str, bool]:
        """Do what *line* says; return a text to offer for editing, and whether it was the last."""
        try:
            outcome = take(self._chat, line)
            return self._act(outcome), outcome.is_over
        except IdeficsError as error:
            self._console.error(error)
            return "" if line.startswith("/") else line, False
        except KeyboardInterrupt:  # during a download
            self._console.note("stopped")
            return line, False

    def _go_on_without(self, text: str) -> str:
        """Let the former model answer if there is one, and return what to offer for editing.

        Raises:
            IdeficsError: Why no model can be loaded.
        """
        error = self._chat.model.loading.error
        if error is None:
            raise RuntimeError("the model can be loaded")
        if not self._chat.go_back():
            if text.strip():
                self._console.tell(f"not asked: {text}")
            raise error
        self._console.error(error)
        self._console.note(f"{self._chat.model.name} answers on")
        return text

    def _tell_loaded(self) -> None:
        """Tell what is known since the model is loaded."""
        for warning in self._chat.model.loading.take_warnings():
            self._console.warn(warning)
        for number, attached in self._chat.count_staged():
            self._tell(f"[{number}] takes {attached.tokens} tokens")

    def show_attached(
        self, attached: Sequence[StagedPicture], first: int, *, is_asked: bool = False
    ) -> None:
        """Draw pictures and tell their names, sizes and costs.

        Args:
            attached: The pictures.
            first: The number of the first.
            is_asked: Their text came with them.
        """
        for number, one in enumerate(attached, start=first):
            if one.thumbnail is not None and self._chat.display("preview"):
                self._previews.show(one.thumbnail)
            self._tell(describe(number, one) + ("" if is_asked else GOES))

    def _prompt(self) -> str:
        if self._chat.turns.editing is not None:
            return f"edit {self._chat.turns.editing} > "
        count = len(self._chat.turns.staged)
        return f"{count} picture{'s' if count > 1 else ''} > " if count else "> "

    def _act(self, outcome: CommandResult) -> str:
        """Do what *outcome* asks for; return a text to offer for editing."""
        total = len(self._chat.conversation.pictures)
        if not outcome.answers:
            total += len(self._chat.turns.staged)
        first = total - len(outcome.attached) + 1
        self.show_attached(outcome.attached, first, is_asked=outcome.answers)
        for name, summary in outcome.rows:
            self._tell_row(name, summary)
        for line in outcome.lines:
            self._tell(line)
        if outcome.answers:
            return self._answer(outcome.sampling)
        return outcome.draft

    def _tell(self, text: str, *, indent: str = "  ") -> None:
        """Tell *text* with its lines broken between words."""
        if not self._console.draws:
            self._console.tell(text)
            return
        width = self._console.err_columns - 1
        for line in printable(text).split("\n"):
            for part in fold(line, width, indent=len(indent)):
                self._console.tell(part)

    def _tell_row(self, name: str, summary: str) -> None:
        """Tell a name and what it is: side by side, one above the other, or in one sentence."""
        if not self._console.draws:
            self._console.tell(f"{name}: {summary}")
        elif self._console.err_columns >= _TWO_COLUMNS:
            self._tell(f"{name:{_NAME_WIDTH}}{summary}", indent=" " * _NAME_WIDTH)
        else:
            self._console.tell(name)
            self._tell(f"  {summary}")

    def _answer(self, sampling: Sampling | None) -> str:
        """Answer the pending question; return its text if that comes to nothing."""
        pending = self._chat.conversation.pending
        if pending is None:
            raise RuntimeError("nothing is pending")
        question = "" if pending.former else pending.text
        is_new = not self._chat.model.loading.is_ready
        try:
            finish = show_reply(self._console, self._chat, sampling)
        except ContextError as error:
            self._console.error(error)
            return self._choose(question, sampling) if question else ""
        except IdeficsError as error:
            if error is not self._chat.model.loading.error:
                self._console.error(error)
            return question
        if finish == "cancelled":
            return self._tell_interrupted(question)
        if finish == "length":
            self._tell_cut()
        self._warn_of_context()
        if is_new:
            self._tell_costs()
        if self._console.draws:
            self._console.tell("")
        return ""

    def _tell_costs(self) -> None:
        """Tell what the last pictures take, which was not known when they were attached."""
        for picture in self._chat.conversation.turns[-1].pictures:
            self._tell(
                f"[{picture.number}] takes {self._chat.picture_tokens(picture.attachment)} tokens"
            )

    def _tell_interrupted(self, question: str) -> str:
        turns = self._chat.conversation.turns
        reply = turns[-1].reply if turns else None
        if reply is not None and reply.is_interrupted:
            self._console.note("interrupted; what was said is kept")
            return ""
        self._console.note("interrupted before the first word; the question is taken back")
        return question

    def _tell_cut(self) -> None:
        used = self._chat.used()
        if used is not None and used.room < 1:
            self._console.note("the answer was cut: the context is full")
            return
        limit = self._chat.sampling.max_new_tokens
        self._console.note(f"the answer was cut after {limit} tokens; `/set max_new_tokens=N`")

    def _warn_of_context(self) -> None:
        used = self._chat.used()
        is_near = used is not None and used.prompt_tokens > _NEARLY_FULL * used.context_tokens
        if used is not None and is_near and not self._is_warned:
            self._console.warn(
                f"{used.prompt_tokens} of {used.context_tokens} tokens of the context are used;"
                " when it is full, you choose what the model forgets"
            )
        self._is_warned = is_near

    def _choose(self, question: str, sampling: Sampling | None) -> str:
        """Let the user choose what goes, so that *question* fits; nothing goes by itself."""
        chat, tell = self._chat, self._console.tell
        turns, pictures = chat.turns_to_forget(question), chat.pictures_to_drop(question)
        if turns:
            tell(f"1: leave out the oldest {'question' if turns == 1 else f'{turns} questions'}")
        if pictures:
            tell("2: leave out " + ", ".join(f"[{number}]" for number in pictures))
        if chat.conversation.turns:
            tell("3: begin anew with this question")
        tell("Enter: change the question")
        try:
            choice = self._lines.read("choose: ").strip()
        except (KeyboardInterrupt, EOFError):
            return question
        if choice == "1" and turns:
            chat.turns.session.forget(turns)
        elif choice == "2" and pictures:
            for number in pictures:
                chat.turns.session.drop(number)
        elif choice == "3" and chat.conversation.turns:
            chat.turns.session.clear()
        else:
            return question
        chat.ask(question)
        return self._answer(sampling)
