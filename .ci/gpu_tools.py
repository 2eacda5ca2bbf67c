"""What the jobs of `gpu_jobs.py` share: figures, engines, requests, plans, times."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from idefics_cli.bench.pictures import Size, draw
from idefics_cli.bench.stage import QUESTION, Prompts
from idefics_cli.core.types import Completion, LoadSpec
from idefics_cli.hardware.machine import probe_machine
from idefics_cli.models.hub.facts import registry_facts
from idefics_cli.models.planning.plan import Plan, PlanChoices, make_plan

if TYPE_CHECKING:
    from idefics_cli.core.types import GenerationRequest
    from idefics_cli.engine.local.engine import LocalEngine
    from idefics_cli.engine.protocol import Prepared

Result = TypeVar("Result")
# A part does not begin when a job has fewer seconds left.
_SPARE_SECONDS = 6.0


class Skip(Exception):
    """The rest of a job cannot run here; the text says why."""


@dataclass(frozen=True)
class Check:
    """What a job needs: where it runs, and where it tells its figures.

    Attributes:
        device: "cuda", "cuda:N" or "cpu".
        quick: Whether to take small models and few questions.
        scratch: Folder for pictures and weights.
        figures: The file for the figures.
        end: When the job must have ended, by `time.monotonic`.
    """

    device: str
    quick: bool
    scratch: Path
    figures: Path
    end: float

    def tell(self, name: str, value: object, *, ok: bool | None = None) -> None:
        """Write a figure; *ok* is None if it is neither right nor wrong."""
        self._write({"name": name, "value": value, "ok": ok})
        print({None: "    ", True: "ok  ", False: "BAD "}[ok] + f"{name}: {value}", flush=True)

    def tell_skip(self, reason: str) -> None:
        """Write that something cannot run here."""
        self._write({"skipped": reason})
        print(f"skipped: {reason}", flush=True)

    @contextmanager
    def part(self, name: str, *, seconds: float = _SPARE_SECONDS) -> Iterator[None]:
        """Make an error of the block a wrong figure, after which the job goes on.

        If fewer than *seconds* are left, the rest of the job is skipped.
        """
        self.need_time(name, seconds=seconds)
        try:
            yield
        except Skip as skip:
            self.tell_skip(f"{name}: {skip}")
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            self.tell(name, f"{type(error).__name__}: {lines[0][:300]}", ok=False)
            traceback.print_exc()

    def need_time(self, name: str, *, seconds: float = _SPARE_SECONDS) -> None:
        """Skip the rest of the job, which begins with *name*, if less than *seconds* are left."""
        if time.monotonic() > self.end - seconds:
            raise Skip(f"no time was left for {name}")

    def need_cuda(self) -> None:
        """Skip the job if the device is not a CUDA device."""
        if not self.device.startswith("cuda"):
            raise Skip(f"needs CUDA, and the device is {self.device}")

    @property
    def shape(self) -> str:
        """The model whose shape the random weights have."""
        return "smolvlm-256m" if self.quick else "idefics2-8b"

    @property
    def layers(self) -> int | None:
        """Layers of the random weights; None keeps all."""
        return 2 if self.quick else None

    @property
    def weights(self) -> Path:
        """Folder of the random weights."""
        return self.scratch / self.shape

    def _write(self, line: Mapping[str, object]) -> None:
        with self.figures.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=str) + "\n")


@contextmanager
def opened(spec: LoadSpec, **options: object) -> Iterator[LocalEngine]:
    """Open an engine whose `Inference` gets *options*; close it at the end of the block."""
    from idefics_cli.engine.local.engine import LocalEngine
    from idefics_cli.engine.local.inference import Inference

    with LocalEngine(spec, make_inference=partial(Inference, **options)) as engine:  # type: ignore[arg-type]  # the options have several types
        yield engine


def synchronize(check: Check) -> None:
    """Wait for all work of the device."""
    import torch

    if check.device.startswith("cuda"):
        torch.cuda.synchronize(check.device)


def timed(check: Check, function: Callable[[], Result]) -> tuple[float, Result]:
    """Return the wall time of *function* with all work that it starts, and its result."""
    synchronize(check)
    started = time.perf_counter()
    result = function()
    synchronize(check)
    return time.perf_counter() - started, result


def served(engine: LocalEngine, requests: Sequence[Prepared], slots: int) -> int:
    """Answer *requests* in a session; return its slots at the end.

    Raises:
        Exception: The first error of a request.
    """
    with engine.serve(slots=slots) as session:
        session.put_requests(requests)
        for _ in requests:
            outcome = session.get_outcome()
            if outcome is None:
                raise RuntimeError("the session ended before all requests")
            if isinstance(outcome[1], Exception):
                raise outcome[1]
        return session.slots


def plan_of(
    check: Check, name: str, *, dtype: str | None = None, quantization: str | None = None
) -> Plan:
    """Return the plan of a model of the registry for this machine."""
    facts = next(facts for facts in registry_facts() if facts.name == name)
    choices = PlanChoices(
        device=check.device,
        dtype=dtype,
        quantization=quantization,
        # SmolVLM cuts every picture into seventeen tiles.
        splitting=False if check.quick else None,
    )
    return make_plan(facts, choices, probe_machine())


def random_spec(check: Check, plan: Plan) -> LoadSpec:
    """Return the spec of *plan* for the random weights, once they are written."""
    while not (check.weights / "bench.json").exists():
        if time.monotonic() > check.end - _SPARE_SECONDS:
            raise RuntimeError("the random weights were not written in time")
        time.sleep(0.2)
    return replace(plan.spec, repo=str(check.weights), quantized_folder=None, offline=True)


class Asker:
    """Prepares requests that all differ.

    Args:
        engine: The engine.
        folder: Folder for the files of pictures.
    """

    def __init__(self, engine: LocalEngine, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._engine, self._folder = engine, folder
        self._prompts = Prompts(engine.spec, self._count)
        self._seeds = count(1)

    def texts(self, rows: int, tokens: int, *, new_tokens: int) -> list[Prepared]:
        """Return *rows* requests with prompts of some *tokens* tokens."""
        made = (self._prompts.text(tokens, new_tokens=new_tokens) for _ in range(rows))
        return [self._engine.prepare(request) for request in made]

    def pictures(self, sizes: Sequence[Size], *, new_tokens: int) -> list[Prepared]:
        """Return a request for one new picture of each of *sizes*."""

        def make(size: Size, seed: int) -> Prepared:
            path = self._folder / f"{seed}.png"
            draw(path, size, seed=seed)
            return self._engine.prepare(
                self._prompts.about([path], QUESTION, new_tokens=new_tokens)
            )

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(make, sizes, list(islice(self._seeds, len(sizes)))))

    def _count(self, request: GenerationRequest) -> int:
        return self._engine.measure(self._engine.prepare(request)).prompt_tokens


def tokens_per_second(done: Sequence[Completion]) -> float:
    """Return the speed of the decode steps of a batch."""
    new = sum(each.new_tokens - 1 for each in done)
    return round(new / max(1e-9, max(each.decode_seconds for each in done)), 1)


def has_bitsandbytes() -> bool:
    """Whether bitsandbytes is installed and can be imported."""
    try:
        import bitsandbytes  # noqa: F401  # only tried
    except (ImportError, OSError, RuntimeError):
        return False
    return True
