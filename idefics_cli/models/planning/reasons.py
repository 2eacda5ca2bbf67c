"""The texts of a plan: the reasons for its choices, and warnings."""

from __future__ import annotations

from dataclasses import dataclass, fields

from idefics_cli.core.paths import display_path
from idefics_cli.core.types import LoadSpec
from idefics_cli.core.units import counted, format_size
from idefics_cli.hardware.machine import Machine
from idefics_cli.models.families.spec import find_family
from idefics_cli.models.hub.facts import ModelFacts
from idefics_cli.models.kernels.table import KERNELS
from idefics_cli.models.planning import attention, decoding, quantization
from idefics_cli.models.planning.downloads import find_lack_of_room
from idefics_cli.models.planning.emulation import explain_float32, find_emulation
from idefics_cli.models.planning.faults import as_warning
from idefics_cli.models.planning.needs import Need, describe_fit, describe_shortage
from idefics_cli.models.planning.placement import Placement, PlanChoices, is_small
from idefics_cli.models.planning.quantization import Problem
from idefics_cli.models.planning.speeds import cpu_dtypes, find_check_note
from idefics_cli.models.planning.trained import (
    adapter_place,
    other_base,
    other_detail,
    unfinished,
)
from idefics_cli.models.planning.verdicts import Fault

_ASKED = "asked for"
_AS_TRAINED = "as the adapter was trained"
_OPTION_FIELDS = tuple(field.name for field in fields(Placement))


@dataclass(frozen=True, slots=True)
class Reason:
    """The reason for one choice, in words for a user."""

    subject: str
    choice: str
    why: str


@dataclass(frozen=True, slots=True)
class Context:
    """All that the reasons of a plan refer to.

    Attributes:
        facts: What is known about the model.
        choices: The user's choices.
        machine: The machine that runs the model.
        option: The placement that the plan chose.
        needs: The memory that the chosen placement needs.
        tried: Better placements that were too large, best first, and the memory that they need.
        missed: Why a GPU on which the model fits cannot run it; None if a GPU holds the model, or
            none is large enough.
        left_out: What a better plan would have, and computes wrongly on this machine.
    """

    facts: ModelFacts
    choices: PlanChoices
    machine: Machine
    option: Placement
    needs: tuple[Need, ...]
    tried: tuple[tuple[Placement, tuple[Need, ...]], ...]
    missed: Problem | None = None
    left_out: tuple[Fault, ...] = ()

    def asked(self, name: str) -> bool:
        """Whether the user gave a value for *name*, a field of `PlanChoices`."""
        return getattr(self.choices, name) not in (None, "auto")

    def too_large(self, unlike: str) -> str | None:
        """Describe the memory of a placement that was tried and too large; None if there is none.

        The placement differs from the chosen one in the field *unlike*, and in as few other fields
        as possible.
        """
        mine = self.option
        others = [
            (sum(getattr(mine, name) != getattr(option, name) for name in _OPTION_FIELDS), needs)
            for option, needs in self.tried
            if getattr(option, unlike) != getattr(mine, unlike)
        ]
        return describe_shortage(min(others, key=lambda other: other[0])[1]) if others else None


def explain_choices(context: Context, spec: LoadSpec) -> tuple[Reason, ...]:
    """Return why each choice of *spec* was made."""
    found = [
        _files(context),
        Reason("device", spec.device, _device(context)),
        Reason("dtype", spec.dtype, _dtype(context, spec)),
        Reason("quantization", spec.quantization, _quantization(context)),
        Reason("attention", spec.attention, _attention(context, spec)),
    ]
    if spec.adapter is not None:
        found.append(Reason("adapter", spec.adapter.name, adapter_place(spec.adapter, spec)))
    if context.option.device == "cpu":
        found += [_products(context, spec), _steps(context, spec)]
    if context.option.gpus:
        found += [_decoding(spec), _vision(spec)]
    if context.facts.splitting is not None:
        choice = "on" if context.option.splitting else "off"
        found.append(Reason("splitting", choice, _splitting(context)))
    if (edge := context.choices.longest_edge) is not None:
        trained = context.facts.adapter and context.facts.adapter.longest_edge
        why = _AS_TRAINED if edge == trained else _ASKED
        found.append(Reason("longest edge", f"{edge} pixels", why))
    if context.option.is_spread:
        found.append(Reason("placement", "spread", _placement(context)))
    if spec.threads is not None:
        found.append(Reason("threads", str(spec.threads), _threads(context)))
    return tuple(found)


def list_warnings(context: Context, spec: LoadSpec) -> tuple[str, ...]:
    """Return the drawbacks of *spec* that a user should expect."""
    option, facts = context.option, context.facts
    found = [
        _float16(context, spec),
        find_emulation(option, facts, context.machine),
        quantization.find_slowness(
            option.quantization,
            device=option.device,
            machine=context.machine,
            shape=facts.shape,
            format_4bit=option.format_4bit,
        ),
        attention.find_caution(spec.attention, facts.family),
        attention.find_slowness(spec.attention),
        _wait(context),
        _missed_gpu(context),
        _unsplit(context),
        _missing_files(context),
        unfinished(facts),
        other_base(spec.adapter, facts),
        other_detail(spec.adapter, facts, option, spec.longest_edge),
    ]
    if option.offload:
        found.append(
            f"{format_size(context.needs[-1].weights)} of weights stay in RAM and are copied to "
            "the GPU for every word: expect seconds per word"
        )
    found += [as_warning(fault) for fault in context.left_out]
    return (*(text for text in found if text), *context.machine.notes)


def _files(context: Context) -> Reason:
    facts = context.facts
    if facts.repo == "demo":
        return Reason("files", "built in", "part of this package")
    if facts.folder is not None:
        return Reason("files", "present", display_path(facts.folder))
    size = f"about {format_size(facts.download_bytes)}" if facts.download_bytes else "unknown size,"
    return Reason(
        "files", "to download", f"{size} from {facts.repo} to {display_path(context.machine.cache)}"
    )


def _device(context: Context) -> str:
    machine, option = context.machine, context.option
    if context.asked("device"):
        return _ASKED
    if option.gpus:
        gpu = option.gpus[0]
        if len(option.gpus) > 1:
            return f"{len(option.gpus)} GPUs: {', '.join(gpu.name for gpu in option.gpus)}"
        most = ", the most of all GPUs" if len(machine.gpus) > 1 else ""
        free, total = format_size(gpu.free_bytes), format_size(gpu.total_bytes)
        return f"{gpu.name}, {free} of {total} free{most}"
    if option.device == "mps":
        return "the Apple GPU is faster than the processor"
    if machine.gpus:
        needs = next((n for o, n in reversed(context.tried) if o.gpus), None)
        return (
            "the GPU cannot run it this way"
            if needs is None
            else f"with the GPU, it {describe_shortage(needs)}"
        )
    if machine.mps_bytes is not None:
        return "too large for the Apple GPU, or not possible on it"
    if machine.has_nvidia_driver and machine.torch_build == "cpu":
        return "there is an NVIDIA driver, but this torch is built for the CPU only"
    return f"no GPU; {machine.cpu_name}, {counted(machine.cores, 'core')}"


def _dtype(context: Context, spec: LoadSpec) -> str:
    option, machine = context.option, context.machine
    if context.asked("dtype"):
        return _ASKED
    if context.facts.stored_dtype is not None:
        return "the dtype of the stored weights"
    if is_small(context.facts):
        return "the most exact, and fast enough for a model of this size"
    if option.gpus:
        capability = ".".join(map(str, min(gpu.capability for gpu in option.gpus)))
        word = "native" if option.dtype == "bfloat16" else "no native bfloat16"
        why = f"{word} on this GPU (compute capability {capability})"
        return f"{why}; the connector needs float32" if spec.float32_modules else why
    if option.device == "mps":
        return "what this macOS and torch support"
    if note := find_check_note(option.dtype, machine):
        return note
    if option.dtype == "float32":
        return explain_float32(option, context.facts, machine, left_out=context.left_out)
    if cpu_dtypes(machine)[0] == "bfloat16":
        return "native on this processor, half the memory of float32"
    what = "float32" if option.quantization == "none" else f"{option.quantization} beside float32"
    return f"{what} would be more exact, but {context.too_large('dtype')}"


def _quantization(context: Context) -> str:
    option = context.option
    if context.facts.stored is not None:
        return "the weights are stored this way"
    is_asked = context.asked("quantization")
    if option.quantization == "none" and not is_asked:
        return f"fits: {describe_fit(context.needs)}"
    why = _ASKED if is_asked else f"with more bits, it {context.too_large('quantization')}"
    is_4bit = option.device == "cpu" and option.quantization == "4bit"
    note = find_check_note(option.format_4bit, context.machine) if is_4bit else None
    return f"{why}; {note}" if note else why


def _attention(context: Context, spec: LoadSpec) -> str:
    if context.asked("attention"):
        return _ASKED
    if spec.kernels.attention is not None:
        return KERNELS[spec.kernels.attention].summary
    family = find_family(context.facts.family)
    if not family.supports_flash:
        return f"the fastest that {family.title} supports"
    names = [f.distribution for f in attention.FLASH.values()]
    installed = [name for name in names if context.machine.has(name)]
    if installed and context.option.gpus:
        return f"exact and proven; {installed[0]} is installed and can be chosen"
    return "exact, fast, and needs no extra package"


def _decoding(spec: LoadSpec) -> Reason:
    problem = decoding.slots_problem(spec.attention, is_spread=spec.device_map is not None)
    problem = problem or decoding.graphs_problem(spec.device, is_8bit=spec.quantization == "8bit")
    if problem is None and not spec.uses_graphs:
        problem = "CUDA graphs gave wrong results on this computer"
    if problem is not None:
        return Reason("decoding", "one kernel at a time", problem)
    why = "a recorded step replaces a thousand kernel launches"
    return Reason("decoding", "CUDA graphs", why)


def _steps(context: Context, spec: LoadSpec) -> Reason:
    if spec.kernels.step:
        return Reason("decoding", spec.kernels.step[0], KERNELS[spec.kernels.step[0]].summary)
    is_stored = context.facts.stored is not None
    problem = decoding.step_problem(spec, context.machine, is_stored=is_stored)
    return Reason("decoding", "layer by layer", problem or "the compiled step is wrong here")


def _vision(spec: LoadSpec) -> Reason:
    tiles = spec.vision_tiles or 1
    why = "more would take the memory of other pictures"
    return Reason("vision", "one tile at a time" if tiles == 1 else f"{tiles} tiles at a time", why)


def explain_products(spec: LoadSpec) -> Reason | None:
    """Return which kernel multiplies by the weights of the text model on a CPU.

    Returns:
        None if bitsandbytes does it, whose kernels depend on the machine.
    """
    if spec.kernels.text:
        kernel = KERNELS[spec.kernels.text[0]]
        return Reason("products", kernel.name, kernel.summary)
    if spec.quantization == "none":
        why = f"{spec.dtype} gains nothing from other kernels on this processor"
        return Reason("products", "torch", why)
    return None


def _products(context: Context, spec: LoadSpec) -> Reason:
    if (reason := explain_products(spec)) is not None:
        return reason
    is_packed = spec.quantization == "4bit" and quantization.has_packed_nf4(context.machine)
    kind = "packed" if is_packed else "unpacked"
    return Reason("products", "bitsandbytes", f"its {kind} kernels")


def _splitting(context: Context) -> str:
    adapter = context.facts.adapter
    if adapter is not None and adapter.splitting == context.option.splitting:
        return _AS_TRAINED
    if context.choices.splitting is not None:
        return _ASKED
    if context.option.splitting == bool(context.facts.splitting):
        return "as the model was trained"
    return f"with tiles, it {context.too_large('splitting')}"


def _placement(context: Context) -> str:
    parts = ", ".join(f"{format_size(need.weights)} on {need.device}" for need in context.needs)
    alone = context.too_large("gpus") or context.too_large("offload")
    return f"weights: {parts}" + (f"; otherwise it {alone}" if alone else "")


def _threads(context: Context) -> str:
    if context.choices.threads is not None:
        return _ASKED
    cores = context.machine.cores
    if is_small(context.facts):
        return "a model of this size gains nothing from more"
    if cores <= 2:
        return "the only core" if cores == 1 else "both cores"
    # Measured on 4 cores while another program kept one of them busy: with 3 threads, the work took
    # 9 times as long; with 2 threads, the other program made no difference.
    return f"one of {cores} cores stays free: a busy core would delay all others"


def _float16(context: Context, spec: LoadSpec) -> str | None:
    option, facts = context.option, context.facts
    if option.dtype != "float16":
        return None
    if option.device == "cpu":
        return (
            "float16 is slow on processors: prompts take several times as long; "
            "`--dtype float32` is fast, `bfloat16` takes no more memory"
        )
    family = find_family(facts.family)
    if facts.parameters < family.float16_caution_parameters or spec.float32_modules:
        return None
    overflow = family.float16_caution
    better = "bfloat16" if all(gpu.has_native_bf16 for gpu in option.gpus) else "float32"
    return overflow and f"{overflow}; `--dtype {better}` does not"


def _missed_gpu(context: Context) -> str | None:
    missed, machine = context.missed, context.machine
    if missed is not None:
        return f"the model would fit the GPU, but {missed.message}: {missed.hint}"
    lacks_build = machine.has_nvidia_driver and machine.torch_build == "cpu"
    has_gpu = bool(machine.gpus) or machine.mps_bytes is not None or lacks_build
    if context.option.device != "cpu" or context.asked("device") or not has_gpu:
        return None
    if context.left_out:  # Another warning says why.
        return None
    return f"the GPU is not used: {_device(context)}"


def _wait(context: Context) -> str | None:
    option, facts = context.option, context.facts
    if facts.stored is not None:
        return None
    return quantization.find_wait(
        option.quantization, facts.parameters, option.device, format_4bit=option.format_4bit
    )


def _unsplit(context: Context) -> str | None:
    facts, option = context.facts, context.option
    if facts.splitting is None and context.choices.splitting:
        title = find_family(facts.family).title
        return f"{title} does not cut pictures into tiles: leave `--splitting` out"
    if context.choices.splitting is not None or option.splitting == bool(facts.splitting):
        return None
    return (
        "pictures are not cut into tiles, to save memory: small print may be missed; "
        "`--splitting` cuts them anyway"
    )


def _missing_files(context: Context) -> str | None:
    facts, machine = context.facts, context.machine
    if facts.folder is not None:
        return None
    if context.choices.offline:
        return (
            "the model is not in the cache, and the network is switched off: "
            f"`idefics models pull {facts.name}` fetches it"
        )
    return find_lack_of_room(facts, machine)
