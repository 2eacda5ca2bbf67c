"""The steps from settings to a plan, and from a plan to an engine; all commands share them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from idefics_cli.cli.invocation import Invocation
from idefics_cli.config.settings import Settings
from idefics_cli.core.colours import WHITE, Colour
from idefics_cli.core.errors import ModelError, PromptError, UsageError
from idefics_cli.core.paths import display_path, quantized_folder, verdict_folder
from idefics_cli.core.types import ImageLimits, LoadSpec, Sampling
from idefics_cli.core.units import format_size
from idefics_cli.engine.protocol import Engine

if TYPE_CHECKING:
    from idefics_cli.cli.services import Services
    from idefics_cli.models.hub.facts import ModelFacts
    from idefics_cli.models.planning.plan import Machine, Plan, PlanChoices
    from idefics_cli.models.planning.verdicts import Verdicts


def image_limits(settings: Settings) -> ImageLimits:
    """Return the limits of the image loader under *settings*.

    Raises:
        UsageError: If the background is not a colour.
    """
    return ImageLimits(
        max_pixels=settings.max_pixels,
        max_bytes=min(settings.max_bytes, 2**60),  # no read takes more
        timeout_seconds=settings.timeout_seconds,
        keeps_truncated=settings.truncated == "keep",
        background=_colour(settings.background),
    )


def _colour(text: str) -> Colour:
    if text == Settings().background:  # without the import of Pillow
        return WHITE
    from idefics_cli.images.background import parse_colour

    return parse_colour(text)


def sampling(settings: Settings, *, default_tokens: int) -> Sampling:
    """Return the sampling parameters under *settings*.

    Args:
        settings: The merged settings.
        default_tokens: Limit of generated tokens if the user set none.
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
    """Check that *prompt* is not empty and is valid UTF-8.

    Raises:
        PromptError: If the prompt is empty or not valid. An error for an empty prompt has *hint*.
    """
    if not prompt.strip():
        raise PromptError("the prompt is empty", hint=hint)
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise PromptError("the prompt is not valid UTF-8 text") from None


def banned_words(words: Sequence[str]) -> tuple[str, ...]:
    """Return the *words* of `--ban`, each once.

    Raises:
        UsageError: If one is empty.
        PromptError: If one is not valid UTF-8.
    """
    for word in words:
        if not word.strip():
            raise UsageError("`--ban` needs a word", hint="`--ban large`")
        check_prompt(word, hint="")
    return tuple(dict.fromkeys(words))


def with_base_model(invocation: Invocation) -> Invocation:
    """Return *invocation* with the adapter as the model, if it has an adapter but no model.

    The name of an adapter as a model means its base model with the adapter.

    Raises:
        ModelError: If there is no such adapter.
    """
    resolved, settings = invocation.resolved, invocation.settings
    if settings.adapter is None or resolved.is_given("model"):
        return invocation
    from idefics_cli.models.hub.adapters import check_name

    check_name(settings.adapter)
    settings = replace(settings, model=settings.adapter, adapter=None)
    return replace(invocation, resolved=replace(resolved, settings=settings))


def find_facts(invocation: Invocation) -> ModelFacts:
    """Return the facts about the model of the settings, with its adapter.

    Raises:
        ModelError: If the model or the adapter is unknown, missing or broken, or the adapter does
            not fit the model.
    """
    settings = invocation.settings
    facts = invocation.services.find_facts(
        settings.model, revision=settings.revision, offline=settings.offline
    )
    if settings.adapter is None:
        return facts
    from idefics_cli.models.hub.adapters import check_width, find_adapter

    adapter = find_adapter(settings.adapter, offline=settings.offline)
    check_width(adapter, facts.shape, facts.name)
    return replace(facts, adapter=adapter)


def plan_for(
    invocation: Invocation, machine: Machine | None = None, facts: ModelFacts | None = None
) -> Plan:
    """Decide how the chosen model runs on this machine; load nothing.

    Args:
        invocation: The call, with its settings.
        machine: Description of this machine; None probes it, before a run.
        facts: Description of the model; None looks the model up.

    Raises:
        ModelError: If the model is unknown or missing; or if a run must download it, and the
            network is switched off.
        PlanError: If this machine cannot run an explicit choice.
    """
    from idefics_cli.models.planning.plan import make_plan

    invocation = with_base_model(invocation)
    services = invocation.services
    facts = facts or find_facts(invocation)
    settings = invocation.settings
    if machine is None:
        check_without_torch(invocation, facts)
    choices = plan_choices(settings)
    # The probe imports torch, which takes seconds.
    with invocation.console.status("starting"):
        machine = machine or services.probe()
        verdicts = known_verdicts(invocation, machine, facts)
        machine = verdicts.with_speeds(machine)
        plan = make_plan(facts, choices, machine, faults=verdicts.faults)
    folder = str(quantized_folder(services.environ))
    return replace(plan, spec=replace(plan.spec, quantized_folder=folder))


def plan_choices(settings: Settings) -> PlanChoices:
    """Return the user's choices for a plan."""
    from idefics_cli.models.planning.plan import PlanChoices

    return PlanChoices(
        device=settings.device,
        dtype=settings.dtype,
        quantization=settings.quantization,
        attention=settings.attention,
        splitting=settings.splitting,
        longest_edge=settings.longest_edge,
        offline=settings.offline,
        threads=settings.threads,
        revision=settings.revision,
        limits=image_limits(settings),
    )


def plan_here(services: Services, facts: ModelFacts, choices: PlanChoices) -> Plan:
    """Decide how a model runs on the machine of this process, without a word to the user.

    Raises:
        PlanError: If this machine cannot run an explicit choice.
    """
    from idefics_cli.models.planning.plan import make_plan

    machine = services.probe()
    verdicts = _verdicts(services, choices.device, machine, facts)
    machine = verdicts.with_speeds(machine)
    plan = make_plan(facts, choices, machine, faults=verdicts.faults)
    folder = str(quantized_folder(services.environ))
    return replace(plan, spec=replace(plan.spec, quantized_folder=folder))


def known_verdicts(invocation: Invocation, machine: Machine, facts: ModelFacts) -> Verdicts:
    """Return what checks of this machine found; GPUs that are new get a short check first.

    Files that hold no verdict are ignored with a warning.
    """
    verdicts = _verdicts(invocation.services, invocation.settings.device, machine, facts)
    for note in verdicts.notes:
        invocation.console.warn(note)
    return verdicts


def _verdicts(
    services: Services, device: str | None, machine: Machine, facts: ModelFacts
) -> Verdicts:
    from idefics_cli.models.planning.verdicts import read_verdicts

    folder = verdict_folder(services.environ)
    verdicts = read_verdicts(folder, machine)
    if machine.gpus and (device or "auto").startswith(("auto", "cuda")):
        verdicts = services.probe_gpus(folder, verdicts, machine, facts.shape)
    return verdicts


def check_without_torch(
    invocation: Invocation, facts: ModelFacts | None, devices: str | None = None
) -> None:
    """Check what can be known before torch is imported, which takes seconds.

    Args:
        invocation: The call, with its settings.
        facts: Description of the model; None if it need not be on this machine.
        devices: The text of `--devices`, if it takes the place of `--device`.

    Raises:
        ModelError: If a run must download the model, and the network is switched off.
        PlanError: If the devices include a GPU, and torch has no support for it.
    """
    from idefics_cli.models.planning.plan import check_torch_build

    settings = invocation.settings
    if facts is not None and not settings.dry_run:
        _check_network(settings, facts)
    asked = settings.device if devices is None else devices
    if "cuda" in asked or devices == "all":
        option = "--device" if devices is None else "--devices"
        check_torch_build(f"{option} {asked}", invocation.services.torch_version())


def _check_network(settings: Settings, facts: ModelFacts) -> None:
    """Raise a ModelError if the model must be downloaded, and the network is switched off."""
    from idefics_cli.models.hub.errors import not_cached

    if facts.folder is None and settings.offline:
        raise not_cached(facts.repo, facts.revision)


def report_warnings(invocation: Invocation, plan: Plan) -> None:
    """Show the warnings of *plan*, and ask before a download.

    Raises:
        ModelError: If the model must be downloaded, and the network is switched off, the disk is
            too full, or the user declines.
    """
    _check_network(invocation.settings, plan.facts)
    # The warnings come first, because an adapter for another model makes a download useless.
    for warning in plan.warnings:
        invocation.console.warn(warning)
    if plan.facts.folder is None:
        confirm_download(invocation, plan.facts)


def confirm_download(invocation: Invocation, facts: ModelFacts) -> None:
    """Ask before the download of a model that is not on this machine.

    Raises:
        ModelError: If the network is switched off, the disk is too full, or the user declines.
    """
    from idefics_cli.models.hub.cache import cache_root
    from idefics_cli.models.hub.download import check_space

    size = facts.download_bytes
    _check_network(invocation.settings, facts)
    check_space(facts.repo, size or 0)
    name, root = facts.name or facts.repo, cache_root()
    weight = f"about {format_size(size)}" if size else "files of unknown size"
    console, stdin = invocation.console, invocation.services.stdin
    console.tell(
        f"`{name}` is not downloaded yet: {weight} from the Hugging Face Hub ({facts.repo}) "
        f"into {display_path(root)}"
    )
    if stdin is None or stdin.closed or not (stdin.isatty() and console.err.isatty()):
        return  # there is no user to ask
    if not invocation.settings.yes and not console.ask("Download it?", stdin):
        raise ModelError(
            f"`{name}` is not downloaded",
            hint="`-m demo` is built in; `idefics models` lists smaller models",
        )


@contextmanager
def opened_engine(invocation: Invocation, spec: LoadSpec) -> Iterator[Engine]:
    """Load the model of *spec*, yield its engine, and close it.

    Raises:
        ModelError: If the model is missing or broken.
        MemoryLimitError: If the model does not fit into memory.
    """
    notes: list[str] = []
    is_loaded = False

    def report(phase: str, share: float | None) -> None:
        if is_loaded:
            notes.append(phase)  # a spinner has the line while the engine answers
        else:
            progress(phase, share)

    with invocation.console.status(f"loading {spec.name or spec.repo}") as progress:
        loaded = invocation.services.make_factory(spec)(progress=report)
    is_loaded = True
    with loaded as engine:
        yield engine
    for note in notes:
        invocation.console.note(note)
