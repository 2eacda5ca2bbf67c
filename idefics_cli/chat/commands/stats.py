"""The slash command that shows the model, the context, the speed and the memory."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from idefics_cli.chat.commands.arguments import refuse_words
from idefics_cli.chat.commands.slash_command import CommandContext, CommandResult
from idefics_cli.chat.dialogue import Chat
from idefics_cli.core.units import counted, format_size


def show_stats(context: CommandContext, words: str) -> CommandResult:
    """Show how much of the context is used, and how fast the answers came."""
    refuse_words(words, "stats")
    chat = context.chat
    done, used = chat.statistics, chat.used()
    place = _place(chat)
    # A model on a server has its place in its name.
    lines = [f"model: {chat.model.name.removesuffix(f' {place}')}, {place}"]
    if used:
        share = used.prompt_tokens / used.context_tokens
        lines.append(f"context: {used.prompt_tokens} of {used.context_tokens} tokens, {share:.0%}")
    lines.append(
        f"prompts: {counted(done.computed_tokens, 'token')} computed, {done.reused_tokens} reused"
    )
    if done.replies:
        speed = done.new_tokens / done.seconds if done.seconds else 0.0
        lines.append(
            f"answers: {done.replies}, {counted(done.new_tokens, 'token')},"
            f" {speed:.1f} tokens per second"
        )
    if memory := ", ".join(f"{format_size(peak)} {where}" for where, peak in _peaks(chat)):
        lines.append(f"memory: at most {memory}")
    return CommandResult(tuple(lines))


def _place(chat: Chat) -> str:
    if not chat.model.loading.is_ready:
        return chat.model.loading.phase
    spec = chat.model.engine.spec
    if spec.server is not None:
        return f"at {spec.server.url}"
    return f"{spec.dtype} on {spec.device}"


def _peaks(chat: Chat) -> Iterable[tuple[str, int]]:
    """Yield the kinds of memory, and the most bytes of each that were used."""
    if main := _peak_bytes():
        yield "of main memory", main
    if chat.model.loading.is_ready and chat.model.engine.spec.device.startswith("cuda"):
        from idefics_cli.engine.local.memory import peak_bytes

        yield f"on {chat.model.engine.spec.device}", peak_bytes(chat.model.engine.spec.device)


def _peak_bytes() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # The unit is kilobytes on Linux and bytes on macOS; see getrusage(2).
    return peak if sys.platform == "darwin" else peak * 1024
