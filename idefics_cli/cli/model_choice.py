"""From settings to a plan, and from a plan to an engine: the same for every command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from idefics_cli.cli.invocation import Invocation
from idefics_cli.config.settings import Settings
from idefics_cli.core.errors import ModelError, PromptError
from idefics_cli.core.paths import cache_folder, display_path
from idefics_cli.core.types import ImageLimits, Sampling
from idefics_cli.core.units import format_size
from idefics_cli.engine.protocol import Engine

if TYPE_CHECKING:
    from idefics_cli.models.hub.facts import ModelFacts
    from idefics_cli.models.planning.plan import Machine, Plan


def image_limits(settings: Settings) -> ImageLimits:
    """Return what the image loader accepts under *settings*."""
    return ImageLimits(
        max_pixels=settings.max_pixels,
        max_bytes=settings.max_bytes,
        timeout_seconds=settings.timeout_seconds,
    )


def sampling(settings: Settings, *, default_tokens: int) -> Sampling:
    """Return how tokens are chosen under *settings*.

    Args:
        settings: The merged settings.
        default_tokens: The limit of the command when the user set none.
    """
    return Sampling(
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        repetition_penalty=settings.repetition_penalty,
        max_new_tokens=settings.max_new_tokens or default_tokens,
        seed=settings.seed,
    )


def check_prompt(prompt: str, *, hint: str) -> None:
    """Check that *prompt* is a text that a model can be asked.

    Raises:
        PromptError: If it is empty, and *hint* says what to do then, or not valid UTF-8.
    """
    if not prompt.strip():
        raise PromptError("the prompt is empty", hint=hint)
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise PromptError("the prompt is not valid UTF-8 text") from None


def plan_for(
    invocation: Invocation, machine: Machine | None = None, facts: ModelFacts | None = None
) -> Plan:
    """Decide how the chosen model runs on this machine; loads nothing.

    Args:
        invocation: The call, with its settings.
        machine: What is known of this machine; None looks.
        facts: What is known of the model; None looks it up.

    Raises:
        ModelError: If the model is unknown or not there.
        PlanError: If the machine cannot do what was asked for.
    """
    from idefics_cli.models.planning.plan import PlanChoices, make_plan

    settings, services = invocation.settings, invocation.services
    facts = facts or services.find_facts(
        settings.model, revision=settings.revision, offline=settings.offline
    )
    choices = PlanChoices(
        device=settings.device,
        dtype=settings.dtype,
        quantization=settings.quantization,
        attention=settings.attention,
        splitting=settings.splitting,
        offline=settings.offline,
        threads=settings.threads,
        revision=settings.revision,
        limits=image_limits(settings),
    )
    # Looking at the machine imports torch, which takes seconds.
    with invocation.console.status("starting"):
        plan = make_plan(facts, choices, machine or services.probe())
    kept = str(cache_folder(services.environ) / "quantized")
    return replace(plan, spec=replace(plan.spec, quantized_folder=kept))


def report_warnings(invocation: Invocation, plan: Plan) -> None:
    """Tell what the plan warns of, and what will be downloaded, before the model loads.

    Raises:
        ModelError: If that would end in a download, and the network is switched off, the disk
            is too full, or the user does not want it.
    """
    if plan.facts.folder is None:
        _agree_to_download(invocation, plan)
    for warning in plan.warnings:
        invocation.console.warn(warning)


def _agree_to_download(invocation: Invocation, plan: Plan) -> None:
    from idefics_cli.models.hub.cache import cache_root
    from idefics_cli.models.hub.download import check_space
    from idefics_cli.models.hub.errors import not_cached

    spec, size = plan.spec, plan.facts.download_bytes
    if spec.offline:
        raise not_cached(spec.repo, spec.revision)
    check_space(spec.repo, size or 0)
    name, root = spec.name or spec.repo, cache_root()
    weight = f"about {format_size(size)}" if size else "of unknown size"
    console, stdin = invocation.console, invocation.services.stdin
    console.tell(
        f"`{name}` is not downloaded yet: {weight} from the Hugging Face Hub ({spec.repo}) "
        f"into {display_path(root)}"
    )
    if stdin is None or stdin.closed or not (stdin.isatty() and console.err.isatty()):
        return  # nobody to ask
    if not invocation.settings.yes and not console.ask("Download it?", stdin):
        raise ModelError(
            f"`{name}` is not downloaded",
            hint="`-m demo` is built in; `idefics models` lists smaller models",
        )


@contextmanager
def opened_engine(invocation: Invocation, plan: Plan) -> Iterator[Engine]:
    """Load what *plan* says, and close it at the end.

    Raises:
        ModelError: If the model is not there, or broken.
        MemoryLimitError: If it does not fit.
    """
    spec = plan.spec
    with invocation.console.status(f"loading {spec.name or spec.repo}") as progress:
        loaded = invocation.services.make_factory(spec)(progress=progress)
    with loaded as engine:
        yield engine
