"""`idefics tune`: an adapter from the user's own pictures."""

from __future__ import annotations

from typing import cast, get_args

import typer

from idefics_cli.cli import options
from idefics_cli.cli.commands.tune import options as own
from idefics_cli.cli.commands.tune.choices import (
    chosen_folder,
    chosen_share,
    chosen_training,
    chosen_word,
)
from idefics_cli.cli.commands.tune.data import DataChoices
from idefics_cli.cli.commands.tune.run import tune_model
from idefics_cli.cli.invocation import begin_command
from idefics_cli.training.data.options import Learn, Lines


def tune(
    context: typer.Context,
    data: own.Data,
    picture: own.PictureColumn = None,
    question: own.Question = None,
    answer: own.AnswerColumn = None,
    images: own.Images = None,
    prompt: own.Prompt = None,
    lines: own.Lines = None,
    learn: own.Learn = None,
    validation: own.Validation = None,
    most_tokens: own.MostTokens = None,
    skip_bad: own.SkipBad = False,
    train: own.Train = None,
    full: own.Full = False,
    rank: own.Rank = None,
    alpha: own.Alpha = None,
    dropout: own.Dropout = None,
    dora: own.Dora = False,
    learning_rate: own.LearningRate = None,
    epochs: own.Epochs = None,
    batch_size: own.BatchSize = None,
    replay: own.Replay = None,
    seed: options.Seed = None,
    keep_features: own.KeepFeatures = True,
    checkpointing: own.Checkpointing = None,
    model: options.Model = None,
    revision: options.Revision = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantization: options.QuantizationName = None,
    splitting: options.Splitting = None,
    longest_edge: options.LongestEdge = None,
    offline: options.Offline = None,
    threads: options.Threads = None,
    yes: options.Yes = None,
    output: own.Folder = None,
    overwrite: options.Overwrite = None,
    plot: own.Plot = False,
    json: options.Json = None,
    dry_run: options.DryRun = None,
    verbose: options.Verbose = None,
    quiet: options.Quiet = None,
) -> None:
    """Train a model on your own pictures with captions or conversations.

    `idefics tune photos/ -m smolvlm-500m -o my-style`

    `idefics caption new/ --adapter my-style`

    DATA is a folder of pictures with captions, as `idefics caption` writes them, or a file of
    conversations. The result is a LoRA adapter. After Ctrl-C, the same command goes on.
    """
    invocation = begin_command(context)
    settings = invocation.settings
    folder = chosen_folder(settings.output)
    choices = chosen_training(
        train=train,
        full=full,
        rank=rank,
        alpha=alpha,
        dropout=dropout,
        dora=dora,
        learning_rate=learning_rate,
        epochs=epochs,
        batch_size=settings.batch_size,
        replay=replay,
        seed=settings.seed,
        checkpointing=checkpointing,
        keep_features=keep_features,
    )
    chosen = DataChoices(
        data=data,
        picture=picture,
        question=question,
        answer=answer,
        images=images,
        lines=chosen_word("--lines", lines, get_args(Lines)),
        learn=chosen_word("--learn", learn, get_args(Learn)),
        validation=chosen_share(validation),
        most_tokens=cast("int | None", own.number("most_tokens", most_tokens)),
        skips_bad=skip_bad,
    )
    raise typer.Exit(tune_model(invocation, chosen, choices, folder, plots=plot))
