"""What only fresh processes can tell: the time to the first token, load time, peak memory."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from idefics_cli.bench.agreement import Agreement
from idefics_cli.bench.cold_start.forks import can_fork
from idefics_cli.bench.importer import Importer, LoadReport, Order, Side, failed
from idefics_cli.bench.measure import Clock, Series, Watch
from idefics_cli.bench.report import ReportRow, Skipped
from idefics_cli.bench.stage import QUESTION, Stage
from idefics_cli.core.errors import IdeficsError
from idefics_cli.core.types import LoadSpec
from idefics_cli.models.families.spec import find_family

# A fresh process takes seconds, so few are measured; the first warms the disk cache.
_ROUNDS = 3
_TIMEOUT_SECONDS = 1800.0
_NEW_TOKENS = 4

_Name = TypeVar("_Name", bound=str)

# As people copy it from the model documentation, timed from outside. `legacy` is what keeps the
# tokens right for Llama tokenizers; it costs nothing.
_SCRIPT = """\
import sys
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
folder, dtype, device, threads, splitting, picture, question = sys.argv[1:]
if threads:
    torch.set_num_threads(int(threads))
options = {"do_image_splitting": splitting == "True"} if splitting else {}
processor = AutoProcessor.from_pretrained(folder, legacy=True, **options)
model = AutoModelForImageTextToText.from_pretrained(folder, dtype=getattr(torch, dtype))
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
# What follows would not be timed: Python takes a second to leave.
import os
os._exit(0)
"""


def start(stage: Stage) -> Iterator[ReportRow | Skipped]:
    """Time from the command line to the first token, beside the time that imports take."""
    spec = stage.spec
    has_script = find_family(spec.family).prompt == "template"
    if not has_script or not spec.chats or spec.quantization != "none":
        yield Skipped("start", "", "there is no script of a few lines for this model and format")
        return
    picture = stage.studio.draw((640, 480))
    clock = stage.world.instruments.clock
    script = [sys.executable, "-c", _SCRIPT, *_script_arguments(spec, stage, picture)]
    runs = {
        "ours": lambda: _first_output(_our_command(stage, picture), clock),
        "plain": lambda: _first_output(script, clock),
        "imports": lambda: _imports(stage, clock),
    }
    watch = Watch(stage.world.instruments)
    with watch.watching():
        times, texts = _race(stage, runs, watch)
    same = texts["ours"] == texts["plain"]
    agrees = same or stage.allowed is not None
    both = f"{texts['ours']!r}, plain {texts['plain']!r}"
    verdict = "tolerated" if agrees else "differs"
    text = "the same first token" if same else f"first token {both}: {verdict}"
    imported = times["imports"].median
    yield ReportRow(
        "start",
        "process start to first token",
        "fresh processes: `idefics ask` and a script of a dozen lines, one 640x480 picture",
        "s",
        False,
        times["ours"],
        times["plain"],
        Agreement(agrees, float(same), 1, stage.allowed, None, text),
        watch.foreign_cores,
        watch.reference,
        (
            f"importing torch and the model class alone takes {imported:.2f} s; "
            f"ours takes {times['ours'].median / imported:.2f} times as long",
        ),
    )


def load(stage: Stage) -> Iterator[ReportRow | Skipped]:
    """Seconds to load the model, and peak memory with a short answer."""
    picture = stage.studio.draw((640, 480))
    sides: tuple[Side, Side] = ("ours", "plain")
    found: dict[Side, list[LoadReport]] = {side: [] for side in sides}
    watch = Watch(stage.world.instruments)
    try:
        with watch.watching():
            for side in _turns(stage, "load", sides, watch):
                found[side].append(_load(stage, side, picture))
    finally:
        stage.keep(None)
    same = found["ours"][0].tokens == found["plain"][0].tokens
    text = "the same tokens" if same else "other tokens"
    agrees = same or stage.allowed is not None
    agreement = Agreement(agrees, float(same), 1, stage.allowed, None, text)
    on = "GPU memory" if stage.spec.device.startswith("cuda") else "resident memory"
    for name, compares, unit, values in (
        ("load", "from the files to a model that can answer, all imported", "s", _load_seconds),
        ("peak memory", f"{on}, with a short answer about a picture", "GB", _peak_gigabytes),
    ):
        yield ReportRow(
            "load",
            name,
            f"processes of their own: {compares}",
            unit,
            False,
            Series(tuple(map(values, found["ours"]))),
            Series(tuple(map(values, found["plain"]))),
            agreement,
            watch.foreign_cores,
            watch.reference,
        )


def _load_seconds(loading: LoadReport) -> float:
    return loading.load_seconds


def _peak_gigabytes(loading: LoadReport) -> float:
    return loading.peak_bytes / 1e9


def _race(
    stage: Stage, runs: Mapping[str, Callable[[], tuple[float, str]]], watch: Watch
) -> tuple[dict[str, Series], dict[str, str]]:
    """Return the seconds that each of *runs* took, and what it wrote last."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    texts = {}
    for name in _turns(stage, "start", list(runs), watch):
        taken, texts[name] = runs[name]()
        seconds[name].append(taken)
    return {name: Series(tuple(values)) for name, values in seconds.items()}, texts


def _turns(stage: Stage, scenario: str, names: Sequence[_Name], watch: Watch) -> Iterator[_Name]:
    """Yield *names* in each round, every other time from the last, until the time is over."""
    clock, pace = stage.world.instruments.clock, stage.choices.pace
    began = clock()
    for number in range(1 if stage.choices.quick else min(_ROUNDS, pace.rounds)):
        for name in names if number % 2 == 0 else names[::-1]:
            stage.world.say(f"{scenario}: {name}, round {number + 1}")
            yield name
        watch.refer()
        if clock() - began >= pace.seconds:
            break


def _imports(stage: Stage, clock: Clock) -> tuple[float, str]:
    """Return the seconds until a process has imported all, and leave it to `load`."""
    stage.keep(None)
    started = clock()
    importer = Importer(stage.spec.family)
    stage.keep(importer)
    try:
        importer.wait()
    except IdeficsError:
        stage.keep(None)
        raise
    return clock() - started, ""


def _first_output(command: Sequence[str], clock: Clock) -> tuple[float, str]:
    """Return the seconds until *command* wrote its first byte, and all that it wrote."""
    started = clock()
    # Errors go to a file: a full pipe that nobody reads would stop the process.
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
        )
        try:
            assert process.stdout is not None
            head = process.stdout.read(1)
            taken = clock() - started
            tail, _ = process.communicate(timeout=_TIMEOUT_SECONDS)
        except BaseException:
            process.kill()
            process.wait()
            raise
        if process.returncode:
            errors.seek(0)
            raise failed(command, errors.read())
    return taken, (head + tail).decode("utf-8", "replace").strip()


def _load(stage: Stage, side: Side, picture: Path) -> LoadReport:
    in_fork = stage.spec.device == "cpu" and can_fork()
    importer = stage.importer
    if importer is None:
        importer = Importer(stage.spec.family)
        stage.keep(importer)
        importer.wait()
    order = Order(side, stage.spec, stage.world.folder, picture, _NEW_TOKENS, in_fork)
    loading = importer.load(order)
    if not in_fork:
        stage.keep(None)
    return loading


def _our_command(stage: Stage, picture: Path) -> list[str]:
    spec = stage.spec
    command = [sys.executable, "-m", "idefics_cli", "ask", QUESTION, "-i", str(picture)]
    command += ["-m", stage.world.name, "--max-new-tokens", "1", "--stream", "--offline"]
    command += ["--device", spec.device, "--dtype", spec.dtype, "--quantization", "none"]
    command += ["--attention", spec.attention, "--temperature", "0"]
    if spec.splitting is not None:
        command.append("--splitting" if spec.splitting else "--no-splitting")
    if spec.threads is not None:
        command += ["--threads", str(spec.threads)]
    return command


def _script_arguments(spec: LoadSpec, stage: Stage, picture: Path) -> list[str]:
    threads = "" if spec.threads is None else str(spec.threads)
    splitting = "" if spec.splitting is None else str(spec.splitting)
    folder = str(stage.world.folder)
    return [folder, spec.dtype, spec.device, threads, splitting, str(picture), QUESTION]
