"""`idefics bench`: this tool against plain transformers on this machine, in one run."""

from __future__ import annotations

import typer

from idefics_cli.cli import options
from idefics_cli.cli.commands.bench import options as own
from idefics_cli.cli.commands.bench.choices import check_outputs, parse, parse_weights
from idefics_cli.cli.commands.bench.measuring import measure
from idefics_cli.cli.commands.bench.outcome import deliver
from idefics_cli.cli.commands.bench.planned import plan_bench
from idefics_cli.cli.invocation import begin_command


def bench(
    context: typer.Context,
    scenarios: own.Scenarios = None,
    batch_sizes: own.BatchSizes = None,
    contexts: own.Contexts = None,
    new_tokens: own.NewTokens = None,
    rounds: own.Rounds = None,
    seconds: own.Seconds = None,
    quick: own.Quick = False,
    count: options.Count = None,
    model: options.Model = None,
    shape: own.Shape = None,
    layers: own.Layers = None,
    vision_layers: own.VisionLayers = None,
    keep_weights: own.KeepWeights = None,
    revision: options.Revision = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantization: options.QuantizationName = None,
    plain_quantization: own.PlainQuantization = None,
    attention: options.AttentionName = None,
    splitting: options.Splitting = None,
    longest_edge: options.LongestEdge = None,
    offline: options.Offline = None,
    threads: options.Threads = None,
    json: options.Json = None,
    report_file: own.ReportFile = None,
    plot: own.Plot = None,
    verbose: options.Verbose = None,
    quiet: options.Quiet = None,
) -> None:
    """Measure ours against plain transformers: same weights, same requests, in turns.

    `idefics bench -m demo`

    `idefics bench decode vision --shape idefics2-8b --layers 4`

    `idefics bench caption photos/ -m smolvlm-256m --plot captions.png`

    Each figure is the median of interleaved rounds, after one round to warm up. If the answers
    of the two sides differ, the exit code is 3. Ctrl-C shows the figures so far.
    """
    invocation = begin_command(context)
    has_model = invocation.resolved.is_given("model")
    check_outputs(report_file, plot)
    weights = parse_weights(shape, layers, vision_layers, keep_weights, has_model=has_model)
    asked = parse(
        scenarios or [],
        weights=weights,
        batch_sizes=batch_sizes,
        contexts=contexts,
        new_tokens=new_tokens,
        rounds=rounds,
        seconds=seconds,
        plain_quantization=plain_quantization,
        quick=quick,
    )
    with plan_bench(invocation, asked) as plan:
        report = measure(invocation, asked, plan)
    raise typer.Exit(deliver(invocation, report, asked, plan, report_file, plot))
