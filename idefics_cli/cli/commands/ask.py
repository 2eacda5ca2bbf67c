"""`idefics ask`: one question and its answer."""

from __future__ import annotations

from typing import Annotated

import typer

from idefics_cli.cli import options
from idefics_cli.cli.answer import answer_once
from idefics_cli.cli.examples import read_examples
from idefics_cli.cli.invocation import begin_command
from idefics_cli.cli.model_choice import banned_words
from idefics_cli.cli.question import AskedQuestion
from idefics_cli.cli.reply_form import chosen_form
from idefics_cli.config.settings import ANSWER_TOKENS


def ask(
    context: typer.Context,
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT", help="The question; text on stdin precedes it or replaces it."
        ),
    ] = None,
    image: options.Images = None,
    model: options.Model = None,
    server: options.Server = None,
    api_key_file: options.ServerKeyFile = None,
    revision: options.Revision = None,
    adapter: options.AdapterName = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantization: options.QuantizationName = None,
    attention: options.AttentionName = None,
    splitting: options.Splitting = None,
    longest_edge: options.LongestEdge = None,
    offline: options.Offline = None,
    threads: options.Threads = None,
    yes: options.Yes = None,
    system: options.System = None,
    raw: options.Raw = None,
    example: options.Examples = None,
    examples: options.ExampleLists = None,
    schema: options.Schema = None,
    schema_prompt: options.SchemaPrompt = None,
    regex: options.Regex = None,
    choice: options.Choices = None,
    ban: options.Ban = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    repetition_penalty: options.RepetitionPenalty = None,
    max_new_tokens: options.MaxNewTokens = None,
    seed: options.Seed = None,
    max_pixels: options.MaxPixels = None,
    max_bytes: options.MaxBytes = None,
    timeout_seconds: options.TimeoutSeconds = None,
    truncated: options.Truncated = None,
    background: options.Background = None,
    json: options.Json = None,
    stream: options.Stream = None,
    dry_run: options.DryRun = None,
    verbose: options.Verbose = None,
    quiet: options.Quiet = None,
) -> None:
    """Answer one question about pictures.

    `idefics ask "What is the person holding?" -i photo.jpg`

    In a pipe, stdout holds only the answer.
    """
    invocation = begin_command(context)
    form = chosen_form(
        invocation, schema=schema, regex=regex, choices=choice, default_tokens=ANSWER_TOKENS
    )
    shown = read_examples(invocation, example or (), examples or ())
    banned = banned_words(ban or ())
    answer_once(invocation, AskedQuestion(text, image or (), form, shown, banned))
