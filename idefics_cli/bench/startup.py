"""The scenarios `start` and `load`, which only fresh processes can measure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from idefics_cli.bench.agreement import Agreement
from idefics_cli.bench.cold_start.processes import LoadOrder, LoadReport, Side, python_command
from idefics_cli.bench.measure import Series, Watch
from idefics_cli.bench.report import ReportRow, Skipped
from idefics_cli.bench.stage import QUESTION, Stage
from idefics_cli.models.families.spec import find_family

# There are few rounds because a fresh process takes seconds. The first round also reads the files
# into the disk cache; the median of three rounds does not depend on its time.
_ROUNDS = 3
_NEW_TOKENS = 4

_Name = TypeVar("_Name", bound=str)

# This script only imports what every program with this model must import. Its time shows how much
# of a start the imports take.
_IMPORTS = """\
import torch
from transformers import {model_class}
print(0, flush=True)
import os
os._exit(0)
"""
# Plain transformers starts with this script, which is like the examples in the documentation of
# models. The time is measured from outside. With `legacy=True`, Llama tokenizers give the right
# tokens; the flag takes no time.
_SCRIPT = """\
import sys
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
folder, dtype, device, threads, splitting, edge, picture, question = sys.argv[1:]
if threads:
    torch.set_num_threads(int(threads))
options = {"do_image_splitting": splitting == "True"} if splitting else {}
processor = AutoProcessor.from_pretrained(folder, legacy=True, trust_remote_code=False, **options)
if edge:
    images = processor.image_processor
    images.size = {**dict(images.size), "longest_edge": int(edge)}
model = AutoModelForImageTextToText.from_pretrained(
    folder, dtype=getattr(torch, dtype), trust_remote_code=False
)
model = model.to(device).eval()
content = [{"type": "image"}, {"type": "text", "text": question}]
text = processor.apply_chat_template([{"role": "user", "content": content}],
                                     add_generation_prompt=True)
images = [Image.open(picture).convert("RGB")]
inputs = processor(text=text, images=[images], return_tensors="pt").to(device, model.dtype)
inputs.pop("mm_token_type_ids", None)
with torch.inference_mode():
    ids = model.generate(**inputs, max_new_tokens=1, do_sample=False)
width = inputs["input_ids"].shape[1]
print(processor.batch_decode(ids[:, width:], skip_special_tokens=True)[0], flush=True)
# The exit is not timed, because Python would need a second to free all modules.
import os
os._exit(0)
"""


def start(stage: Stage) -> Iterator[ReportRow | Skipped]:
    """Measure the time from the command line to the first token, and the part of the imports."""
    spec = stage.spec
    family = find_family(spec.family)
    if family.prompt != "template" or not spec.chats or spec.quantization != "none":
        yield Skipped("start", "", "there is no script of a few lines for this model and format")
        return
    commands = _commands(stage, family.classes.model)
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    texts = {}
    watch = Watch(stage.world.instruments)
    with watch.watching():
        for name in _turns(stage, "start", list(commands), watch):
            taken, texts[name] = stage.world.processes.time_first_output(name, commands[name])
            seconds[name].append(taken)
    ours, plain, imported = (Series(tuple(values)) for values in seconds.values())
    yield ReportRow(
        "start",
        "process start to first token",
        "fresh processes: `idefics ask` and a script of a dozen lines, one 640x480 picture",
        "s",
        False,
        ours,
        plain,
        _text_agreement(stage, texts["ours"], texts["plain"]),
        watch.foreign_cores,
        watch.reference,
        (
            f"importing torch and the model class alone takes {imported.median:.2f} s; "
            f"idefics takes {ours.median / imported.median:.2f} times as long",
        ),
    )


def load(stage: Stage) -> Iterator[ReportRow | Skipped]:
    """Measure the time to load the model, and the peak memory of loading and a short answer."""
    picture = stage.studio.draw((640, 480))
    sides: tuple[Side, Side] = ("ours", "plain")
    reports: dict[Side, list[LoadReport]] = {side: [] for side in sides}
    watch = Watch(stage.world.instruments)
    with watch.watching():
        for side in _turns(stage, "load", sides, watch):
            order = LoadOrder(side, stage.spec, stage.world.folder, picture, _NEW_TOKENS)
            reports[side].append(stage.world.processes.load(order))
    same = reports["ours"][0].tokens == reports["plain"][0].tokens
    agreement = _agreement(stage, same, "the same tokens" if same else "other tokens")
    on = "GPU memory" if stage.spec.device.startswith("cuda") else "resident memory"
    for name, compares, unit, value in (
        ("load", "from the files to a model that can answer, all imported", "s", _load_seconds),
        ("peak memory", f"{on}, with a short answer about a picture", "GB", _peak_gigabytes),
    ):
        yield ReportRow(
            "load",
            name,
            f"processes of their own: {compares}",
            unit,
            False,
            Series(tuple(map(value, reports["ours"]))),
            Series(tuple(map(value, reports["plain"]))),
            agreement,
            watch.foreign_cores,
            watch.reference,
        )


def _load_seconds(report: LoadReport) -> float:
    return report.load_seconds


def _peak_gigabytes(report: LoadReport) -> float:
    return report.peak_bytes / 1e9


def _turns(stage: Stage, scenario: str, names: Sequence[_Name], watch: Watch) -> Iterator[_Name]:
    """Yield *names* once per round, in reverse order in every second round, until time is up."""
    clock, pace = stage.world.instruments.clock, stage.choices.pace
    started = clock()
    for number in range(1 if stage.choices.quick else min(_ROUNDS, pace.rounds)):
        for name in names if number % 2 == 0 else names[::-1]:
            stage.world.say(f"{scenario}: {name}, round {number + 1}")
            yield name
        watch.measure_reference()
        if clock() - started >= pace.seconds:
            break


def _text_agreement(stage: Stage, ours: str, plain: str) -> Agreement:
    if ours == plain:
        return _agreement(stage, True, "the same first token")
    verdict = "differs" if stage.allowed is None else "tolerated"
    return _agreement(stage, False, f"first token {ours!r}, plain {plain!r}: {verdict}")


def _agreement(stage: Stage, same: bool, text: str) -> Agreement:
    agrees = same or stage.allowed is not None
    return Agreement(agrees, float(same), 1, stage.allowed, None, text)


def _commands(stage: Stage, model_class: str) -> dict[str, list[str]]:
    """Return the command of each side and of the imports that both need, by name."""
    picture = stage.studio.draw((640, 480))
    imports = _IMPORTS.format(model_class=model_class.partition(":")[2])
    return {
        "ours": _our_command(stage, picture),
        "plain": python_command("-c", _SCRIPT, *_script_arguments(stage, picture)),
        "imports": python_command("-c", imports),
    }


def _our_command(stage: Stage, picture: Path) -> list[str]:
    command = python_command("-m", "idefics_cli", "ask", QUESTION, "-i", str(picture))
    command += ["--max-new-tokens", "1", "--stream", *model_flags(stage)]
    return command


def model_flags(stage: Stage) -> list[str]:
    """Return the options with which a command of ours loads the model of *stage*, greedy."""
    spec = stage.spec
    flags = ["-m", stage.world.name, "--offline", "--temperature", "0"]
    flags += ["--device", spec.device, "--dtype", spec.dtype, "--quantization", "none"]
    flags += ["--attention", spec.attention]
    if spec.splitting is not None:
        flags.append("--splitting" if spec.splitting else "--no-splitting")
    if spec.longest_edge is not None:
        flags += ["--longest-edge", str(spec.longest_edge)]
    if spec.threads is not None:
        flags += ["--threads", str(spec.threads)]
    return flags


def _script_arguments(stage: Stage, picture: Path) -> list[str]:
    spec = stage.spec
    threads = "" if spec.threads is None else str(spec.threads)
    splitting = "" if spec.splitting is None else str(spec.splitting)
    edge = "" if spec.longest_edge is None else str(spec.longest_edge)
    folder = str(stage.world.folder)
    return [folder, spec.dtype, spec.device, threads, splitting, edge, str(picture), QUESTION]
