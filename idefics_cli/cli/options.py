"""Every option of the commands, with its help from the table of settings.

A command declares a parameter `name: Alias = None`, where `Alias` is one of the types below. None
means that the option is not given. `cli/invocation.py` merges the given values with the
environment, the file and the defaults, and checks the result.

Allowed values and ranges are therefore written once, in `config/settings.py`. Options with numbers
are declared as text, so that a wrong option and a wrong variable get the same message.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

import typer

from idefics_cli.cli.choices import CHOICES
from idefics_cli.config.setting import Setting
from idefics_cli.config.settings import with_choices

_SETTINGS = with_choices(CHOICES)

MODEL_PANEL = "Model"
ANSWER_PANEL = "Answer"
IMAGES_PANEL = "Pictures"
OUTPUT_PANEL = "Output"
SERVER_PANEL = "Server"


# Any: `typer.Option` returns this type.
def _option(
    name: str,
    *flags: str,
    panel: str,
    metavar: str | None = None,
    complete: Callable[[str], list[tuple[str, str]]] | None = None,
    text: str | None = None,
    unset: str | None = None,
) -> Any:
    setting = _SETTINGS[name]
    setting = setting if text is None else replace(setting, help=text)
    setting = setting if unset is None else replace(setting, default=None, unset=unset)
    metavar = metavar or {str: "NAME", int: "N", float: "X"}.get(setting.kind)
    return typer.Option(
        *(flags or (setting.flag,)),
        help=_help(setting),
        metavar=metavar,
        rich_help_panel=panel,
        show_default=False,
        autocompletion=complete or _complete(setting.words),
    )


# Any: `typer.Option` returns this type.
def _value(flag: str, metavar: str, panel: str, text: str) -> Any:
    """Return an option that is no setting: its value belongs to one call of a command."""
    return typer.Option(flag, metavar=metavar, help=text, rich_help_panel=panel, show_default=False)


def picture_limit(name: str, *, default: float, text: str | None = None) -> Any:
    """Return the option of a limit of pictures that has another default in a command."""
    return _option(name, panel=IMAGES_PANEL, text=text, unset=f"{default:.0f}")


def dry_run(text: str) -> Any:
    """Return the option `--dry-run` with the help *text*, for a command that runs no model."""
    return typer.Option("--dry-run", help=text, rich_help_panel=OUTPUT_PANEL, show_default=False)


def _help(setting: Setting) -> str:
    text = setting.help
    if setting.expectation:
        text = f"{text.removesuffix('.')}: {setting.expectation}."
    # For a switch, "default: off" is obvious and left out.
    if (setting.default is None and not setting.unset) or setting.default is False:
        return text
    return f"{text} (default: {setting.shown_default})"


def _complete(words: tuple[str, ...]) -> Callable[[str], list[tuple[str, str]]] | None:
    def complete(incomplete: str) -> list[tuple[str, str]]:
        return [(word, "") for word in words if word.startswith(incomplete)]

    return complete if words else None


def complete_model(incomplete: str) -> list[tuple[str, str]]:
    """Return the names and summaries of the models that begin with *incomplete*."""
    from idefics_cli.models.hub.registry import MODELS

    return [(name, m.summary) for name, m in MODELS.items() if name.startswith(incomplete)]


# The following options are not settings in `config.toml`: their values differ in each call.
Images = Annotated[
    list[str] | None,
    typer.Option(
        "--image",
        "-i",
        metavar="SOURCE",
        help="Path or URL of a picture or video, or `-` for stdin; can be repeated.",
        rich_help_panel=IMAGES_PANEL,
    ),
]

Continue = Annotated[
    bool,
    typer.Option(
        "--continue",
        "-c",
        help="Continue the last chat.",
        rich_help_panel=MODEL_PANEL,
        show_default=False,
    ),
]
Session = Annotated[
    str | None,
    typer.Option(
        "--session",
        metavar="NAME",
        help="Continue the chat with this name or id; a new name begins a chat.",
        rich_help_panel=MODEL_PANEL,
    ),
]

Model = Annotated[
    str | None, _option("model", "--model", "-m", panel=MODEL_PANEL, complete=complete_model)
]
Revision = Annotated[str | None, _option("revision", panel=MODEL_PANEL)]
AdapterName = Annotated[str | None, _option("adapter", panel=MODEL_PANEL)]
Device = Annotated[str | None, _option("device", panel=MODEL_PANEL)]
Devices = Annotated[str | None, _option("devices", panel=MODEL_PANEL, metavar="LIST")]
Ray = Annotated[str | None, _option("ray", panel=MODEL_PANEL, metavar="ADDRESS")]
ClusterWorkers = Annotated[str | None, _option("workers", panel=MODEL_PANEL)]
Dtype = Annotated[str | None, _option("dtype", panel=MODEL_PANEL)]
QuantizationName = Annotated[str | None, _option("quantization", panel=MODEL_PANEL)]
AttentionName = Annotated[
    str | None, _option("attention", "--attention", "--attn-implementation", panel=MODEL_PANEL)
]
Splitting = Annotated[
    bool | None, _option("splitting", "--splitting/--no-splitting", panel=MODEL_PANEL)
]
LongestEdge = Annotated[str | None, _option("longest_edge", panel=MODEL_PANEL)]
Offline = Annotated[bool | None, _option("offline", "--offline/--online", panel=MODEL_PANEL)]
Yes = Annotated[bool | None, _option("yes", "--yes", "-y", panel=MODEL_PANEL)]
Threads = Annotated[str | None, _option("threads", panel=MODEL_PANEL)]

System = Annotated[
    str | None, _option("system", "--system", "-s", panel=ANSWER_PANEL, metavar="TEXT")
]
Raw = Annotated[bool | None, _option("raw", "--raw", panel=ANSWER_PANEL)]
Temperature = Annotated[str | None, _option("temperature", "--temperature", panel=ANSWER_PANEL)]
TopP = Annotated[str | None, _option("top_p", panel=ANSWER_PANEL)]
TopK = Annotated[str | None, _option("top_k", panel=ANSWER_PANEL)]
RepetitionPenalty = Annotated[str | None, _option("repetition_penalty", panel=ANSWER_PANEL)]
MaxNewTokens = Annotated[str | None, _option("max_new_tokens", panel=ANSWER_PANEL)]
Seed = Annotated[str | None, _option("seed", panel=ANSWER_PANEL)]
CaptionPrompt = Annotated[
    str | None, _option("prompt", "--prompt", "-p", panel=ANSWER_PANEL, metavar="TEXT")
]
Samples = Annotated[str | None, _option("samples", panel=ANSWER_PANEL)]
Prefix = Annotated[str | None, _option("prefix", panel=ANSWER_PANEL, metavar="TEXT")]
Suffix = Annotated[str | None, _option("suffix", panel=ANSWER_PANEL, metavar="TEXT")]
Trigger = Annotated[str | None, _option("trigger", panel=ANSWER_PANEL, metavar="WORDS")]
StripPreamble = Annotated[
    bool | None,
    _option("strip_preamble", "--strip-preamble/--no-strip-preamble", panel=ANSWER_PANEL),
]
OnTruncate = Annotated[str | None, _option("on_truncate", panel=ANSWER_PANEL)]

SchemaPrompt = Annotated[
    bool | None, _option("schema_prompt", "--schema-prompt/--no-schema-prompt", panel=ANSWER_PANEL)
]
Schema = Annotated[
    str | None,
    _value(
        "--schema",
        "SCHEMA",
        ANSWER_PANEL,
        "Answer as JSON: a JSON Schema, its file, or fields such as `caption, people int`.",
    ),
]
Regex = Annotated[
    str | None,
    _value(
        "--regex",
        "PATTERN",
        ANSWER_PANEL,
        "Answer with a text that matches this regular expression as a whole.",
    ),
]
Tags = Annotated[
    str | None,
    _value(
        "--tags",
        "FILE",
        ANSWER_PANEL,
        "Caption with tags of this list, one on each line, and no other words.",
    ),
]
Choices = Annotated[
    list[str] | None,
    _value(
        "--choice",
        "TEXT",
        ANSWER_PANEL,
        "Answer with the likeliest of these texts; repeat it for each.",
    ),
]
PromptFile = Annotated[
    str | None,
    _value("--prompt-file", "FILE", ANSWER_PANEL, "Read the prompt from a file; `-` is stdin."),
]
Ask = Annotated[
    list[str] | None,
    _value("--ask", "NAME=TEXT", ANSWER_PANEL, "Ask a named question; can be repeated."),
]

Examples = Annotated[
    list[str] | None,
    _value(
        "--example",
        "PICTURE=TEXT",
        ANSWER_PANEL,
        "Show the model an example before the question; can be repeated.",
    ),
]
ExampleLists = Annotated[
    list[str] | None,
    _value(
        "--examples",
        "FILE",
        ANSWER_PANEL,
        "Read examples from JSON lines or CSV with `image` and `text`.",
    ),
]

Ban = Annotated[
    list[str] | None,
    _value(
        "--ban",
        "WORD",
        ANSWER_PANEL,
        "Keep a word or a special token out of the answer; can be repeated.",
    ),
]

FileLists = Annotated[
    list[str] | None,
    _value(
        "--filelist",
        "FILE",
        IMAGES_PANEL,
        "Read a list of pictures: paths, JSON lines or CSV; `-` is stdin.",
    ),
]
Null = Annotated[
    bool,
    typer.Option(
        "--null",
        "-0",
        help="The paths of a list end with NUL, as `find -print0` writes them.",
        rich_help_panel=IMAGES_PANEL,
        show_default=False,
    ),
]
MaxPixels = Annotated[str | None, _option("max_pixels", panel=IMAGES_PANEL)]
MaxBytes = Annotated[str | None, _option("max_bytes", panel=IMAGES_PANEL)]
TimeoutSeconds = Annotated[str | None, _option("timeout_seconds", panel=IMAGES_PANEL)]
Truncated = Annotated[str | None, _option("truncated", panel=IMAGES_PANEL)]
Background = Annotated[str | None, _option("background", panel=IMAGES_PANEL, metavar="COLOUR")]
BatchSize = Annotated[str | None, _option("batch_size", panel=IMAGES_PANEL)]
Recursive = Annotated[
    bool | None, _option("recursive", "--recursive/--no-recursive", "-r", panel=IMAGES_PANEL)
]
FollowLinks = Annotated[
    bool | None,
    _option("follow_links", "--follow-links/--no-follow-links", panel=IMAGES_PANEL),
]
PrintJob = Annotated[
    str | None,
    typer.Option(
        "--print-job",
        metavar="NAME",
        help="Print a script that runs all shards as a job array: slurm or k8s.",
        rich_help_panel=OUTPUT_PANEL,
        show_default=False,
        autocompletion=_complete(("slurm", "k8s")),
    ),
]
Shard = Annotated[str | None, _option("shard", panel=IMAGES_PANEL, metavar="I/N")]
Count = Annotated[str | None, _option("count", panel=IMAGES_PANEL)]

Server = Annotated[str | None, _option("server", panel=MODEL_PANEL, metavar="URL")]
ServerKeyFile = Annotated[str | None, _option("api_key_file", panel=MODEL_PANEL, metavar="FILE")]
Host = Annotated[str | None, _option("host", panel=SERVER_PANEL, metavar="ADDRESS")]
Port = Annotated[str | None, _option("port", panel=SERVER_PANEL)]
ApiKeyFile = Annotated[str | None, _option("api_key_file", panel=SERVER_PANEL, metavar="FILE")]
Origin = Annotated[str | None, _option("origin", panel=SERVER_PANEL, metavar="ORIGIN")]
AllowedHost = Annotated[str | None, _option("allowed_host", panel=SERVER_PANEL, metavar="HOST")]
ServedName = Annotated[str | None, _option("served_name", panel=SERVER_PANEL)]
Queue = Annotated[str | None, _option("queue", panel=SERVER_PANEL)]
KeepAlive = Annotated[str | None, _option("keep_alive", panel=SERVER_PANEL, metavar="TIME")]
DrainSeconds = Annotated[str | None, _option("drain_seconds", panel=SERVER_PANEL)]
MaxRequestBytes = Annotated[str | None, _option("max_request_bytes", panel=SERVER_PANEL)]
ImageUrls = Annotated[str | None, _option("image_urls", panel=IMAGES_PANEL, metavar="HOSTS")]
MaxImages = Annotated[str | None, _option("max_images", panel=IMAGES_PANEL)]

Format = Annotated[str | None, _option("format", "--format", "-f", panel=OUTPUT_PANEL)]
Output = Annotated[
    str | None, _option("output", "--output", "-o", panel=OUTPUT_PANEL, metavar="PATH")
]
Existing = Annotated[str | None, _option("existing", panel=OUTPUT_PANEL)]
Overwrite = Annotated[
    bool | None, _option("overwrite", "--overwrite/--no-overwrite", panel=OUTPUT_PANEL)
]
Embed = Annotated[bool | None, _option("embed", "--embed", panel=OUTPUT_PANEL)]
FullNames = Annotated[
    bool | None, _option("full_names", "--full-names/--no-full-names", panel=OUTPUT_PANEL)
]
TextExtension = Annotated[
    str | None, _option("text_extension", panel=OUTPUT_PANEL, metavar=".EXTENSION")
]
Report = Annotated[str | None, _option("report", panel=OUTPUT_PANEL, metavar="FILE.html")]
Json = Annotated[bool | None, _option("json", "--json", panel=OUTPUT_PANEL)]
Stream = Annotated[bool | None, _option("stream", "--stream/--no-stream", panel=OUTPUT_PANEL)]
Plain = Annotated[bool | None, _option("plain", "--plain/--no-plain", panel=OUTPUT_PANEL)]
Preview = Annotated[bool | None, _option("preview", "--preview/--no-preview", panel=OUTPUT_PANEL)]
Accessible = Annotated[
    bool | None, _option("accessible", "--accessible/--no-accessible", panel=OUTPUT_PANEL)
]
Save = Annotated[bool | None, _option("save", "--save/--no-save", panel=OUTPUT_PANEL)]
RetryFailed = Annotated[bool | None, _option("retry_failed", "--retry-failed", panel=OUTPUT_PANEL)]
Failures = Annotated[str | None, _option("failures", panel=OUTPUT_PANEL, metavar="FILE")]
AnswersOutput = Annotated[
    str | None,
    _option(
        *("output", "--output", "-o"),
        panel=OUTPUT_PANEL,
        metavar="FILE",
        text="Write the answers to this file, as JSON lines.",
    ),
]
CollectedOutput = Annotated[
    str | None,
    _option(
        *("output", "--output", "-o"),
        panel=OUTPUT_PANEL,
        metavar="FILE",
        text="Write the rows to this file, in the format of its extension.",
        unset="OUTPUT",
    ),
]
MergedFolder = Annotated[
    str | None,
    _option(
        *("output", "--output", "-o"),
        panel=OUTPUT_PANEL,
        metavar="FOLDER",
        text="Write the model to this new folder.",
        unset="",
    ),
]
AdapterBase = Annotated[
    str | None,
    _option(
        *("model", "--model", "-m"),
        panel=MODEL_PANEL,
        complete=complete_model,
        text="The model of the adapter, if its files do not name it.",
    ),
]
FailedRequests = Annotated[
    str | None,
    _option(
        "failures",
        panel=OUTPUT_PANEL,
        metavar="FILE",
        text="Copy the requests that failed to this file.",
    ),
]
FailFast = Annotated[bool | None, _option("fail_fast", "--fail-fast", panel=OUTPUT_PANEL)]
MaxFailures = Annotated[str | None, _option("max_failures", panel=OUTPUT_PANEL)]
DryRun = Annotated[bool | None, _option("dry_run", "--dry-run", panel=OUTPUT_PANEL)]
Verbose = Annotated[bool | None, _option("verbose", "--verbose", "-v", panel=OUTPUT_PANEL)]
Quiet = Annotated[bool | None, _option("quiet", "--quiet", "-q", panel=OUTPUT_PANEL)]
