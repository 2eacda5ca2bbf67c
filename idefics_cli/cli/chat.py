"""`idefics chat`: answer a question that is piped in."""

from __future__ import annotations

import typer

from idefics_cli.cli import options
from idefics_cli.cli.answer import answer
from idefics_cli.cli.invocation import Invocation, begin
from idefics_cli.core.errors import UsageError


def chat(
    context: typer.Context,
    image: options.Images = None,
    model: options.Model = None,
    revision: options.Revision = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantization: options.QuantizationName = None,
    attention: options.AttentionName = None,
    splitting: options.Splitting = None,
    offline: options.Offline = None,
    threads: options.Threads = None,
    system: options.System = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    repetition_penalty: options.RepetitionPenalty = None,
    max_new_tokens: options.MaxNewTokens = None,
    seed: options.Seed = None,
    max_pixels: options.MaxPixels = None,
    max_bytes: options.MaxBytes = None,
    timeout_seconds: options.TimeoutSeconds = None,
    json: options.Json = None,
    stream: options.Stream = None,
    dry_run: options.DryRun = None,
    verbose: options.Verbose = None,
    quiet: options.Quiet = None,
) -> None:
    """Answer a question that is piped in.

    `echo "What is in it?" | idefics chat -i photo.jpg`

    A conversation at the keyboard is not in this version.
    """
    invocation = begin(context)
    if not invocation.settings.dry_run:
        _require_pipe(invocation)
    answer(invocation, None, image or ())


def _require_pipe(invocation: Invocation) -> None:
    stdin = invocation.services.stdin
    if stdin is not None and not stdin.closed and stdin.isatty():
        raise UsageError(
            "a chat at the keyboard is not in this version",
            hint="`idefics ask PROMPT -i PICTURE`, or pipe the question into `idefics chat`",
        )
