"""The errors that a user can cause, each with the exit code of the program."""

from __future__ import annotations

from typing import ClassVar, Literal

EXIT_DONE = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_PARTIAL = 3
EXIT_INTERRUPTED = 130

ImageErrorKind = Literal[
    "missing", "not_an_image", "truncated", "too_large", "unsupported", "fetch_failed"
]


class IdeficsError(Exception):
    """An error that the user can fix.

    Args:
        message: The problem and the input that caused it, in lower case without a final period.
        hint: The fix; None if the message says enough.
    """

    exit_code: ClassVar[int] = EXIT_FAILURE

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    def add_hint(self, text: str) -> None:
        """Add *text* to the hint, unless it is there or empty."""
        if text and text not in (self.hint or ""):
            self.hint = f"{self.hint}; {text}" if self.hint else text


class UsageError(IdeficsError):
    """A command, option or setting that is not valid."""

    exit_code = EXIT_USAGE


class ConfigError(UsageError):
    """A wrong name or value, in the configuration file or in an environment variable."""


class PlanError(UsageError):
    """A chosen device, dtype, quantization or attention that this machine cannot run."""


class ModelError(IdeficsError):
    """A model that is unknown, not cached, unreachable or broken."""


class PromptError(UsageError):
    """A prompt that the model cannot use: empty, wrong number of images, chat with a base model."""


class ContextError(PromptError):
    """A prompt that is longer than the model's context.

    Args:
        message: As in `IdeficsError`.
        prompt_tokens: Number of tokens of the prompt, image tokens included.
        context_tokens: Number of tokens that the model takes, prompt and reply together.
        hint: As in `IdeficsError`.
    """

    def __init__(
        self,
        message: str,
        *,
        prompt_tokens: int = 0,
        context_tokens: int = 0,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.prompt_tokens = prompt_tokens
        self.context_tokens = context_tokens


class CutError(ModelError):
    """A reply that reached its limit of tokens before it matched its schema or pattern."""


class DeadEndError(ModelError):
    """A reply that cannot go on, because its schema, pattern or banned words exclude all tokens."""


class InputError(IdeficsError):
    """A file or folder, such as a list of pictures, that is missing, empty or cannot be read."""


class MemoryLimitError(IdeficsError):
    """The device ran out of memory while it loaded the model or generated an answer."""


class ServerError(IdeficsError):
    """An answer of the server of `--server` that is an error, or no answer to one request."""


class NoServerError(ServerError):
    """A server that answers no request: it is gone, refuses the key, or lacks the model."""


class SessionError(IdeficsError):
    """A session that is unknown, damaged, open in another process, or cannot be saved."""


class ImageError(IdeficsError):
    """An image that cannot be used.

    Args:
        message: As in `IdeficsError`.
        kind: The kind of failure; a stable value for scripts and `--json`.
        hint: As in `IdeficsError`.
    """

    def __init__(self, message: str, *, kind: ImageErrorKind, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.kind: ImageErrorKind = kind

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions are pickled with their positional arguments only; `kind` is keyword-only.
        return _rebuild_image_error, (str(self), self.kind, self.hint)


def _rebuild_image_error(message: str, kind: ImageErrorKind, hint: str | None) -> ImageError:
    return ImageError(message, kind=kind, hint=hint)
