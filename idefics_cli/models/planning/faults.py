"""Which ways a plan leaves out, because a self-check found that they compute wrongly here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from idefics_cli.core.types import Attention, LoadSpec
from idefics_cli.models.hub.facts import ModelFacts
from idefics_cli.models.planning.placement import Placement
from idefics_cli.models.planning.quantization import Problem
from idefics_cli.models.planning.verdicts import Fault, find_kernel_faults

AGAIN = "`idefics doctor --check` tests it again"


@dataclass(frozen=True, slots=True)
class FaultSieve:
    """Finds the faults that hold for a way to run a model.

    Attributes:
        faults: The faults of all devices.
        model: What is known about the model.
    """

    faults: Sequence[Fault]
    model: ModelFacts

    def attentions(self, option: Placement, asked: Attention | None) -> tuple[Attention, ...]:
        """Return the attentions to try with *option*, the best first."""
        if asked is not None:
            return (asked,)
        return ("sdpa", "eager") if self.find(option, "sdpa") is not None else ("sdpa",)

    def find(self, option: Placement, attention: Attention) -> Fault | None:
        """Return a fault that rules out *option* with *attention*, or None."""
        devices = {f"cuda:{gpu.index}" for gpu in option.gpus} or {option.device}
        format_4bit = option.format_4bit if option.quantization == "4bit" else None
        return self._first(
            devices, (option.dtype, attention, option.quantization, format_4bit), graphs=False
        )

    def kernels(self, device: str) -> dict[str, Fault]:
        """Return the faults of single kernels on *device*, by the name of the kernel."""
        return find_kernel_faults(self.faults, _numbered(device))

    def graph_fault(self, spec: LoadSpec) -> Fault | None:
        """Return a fault that rules out CUDA graphs for *spec*, or None."""
        format_4bit = spec.format_4bit if spec.quantization == "4bit" else None
        choice = (spec.dtype, spec.attention, spec.quantization, format_4bit)
        return self._first({_numbered(spec.device)}, choice, graphs=True)

    def _first(
        self, devices: set[str], choice: tuple[str | None, ...], *, graphs: bool
    ) -> Fault | None:
        shape = self.model.shape
        heads = f"{shape.heads}x{shape.kv_heads}x{shape.head_dim}"
        for fault in self.faults:
            if fault.kernel is not None or fault.with_graphs != graphs:
                continue
            if fault.device not in devices or fault.heads not in (None, heads):
                continue
            named = (fault.dtype, fault.attention, fault.quantization, fault.format_4bit)
            if all(a in (None, b) for a, b in zip(named, choice, strict=True)):
                return fault
        return None


def _numbered(device: str) -> str:
    """Return *device* as verdicts name it: with its number."""
    return "cuda:0" if device == "cuda" else device


def as_problem(fault: Fault) -> Problem:
    """Return *fault* as a reason why a way cannot run."""
    return Problem(f"{fault.subject} computes wrongly here ({fault.found})", AGAIN)


def as_warning(fault: Fault) -> str:
    """Return the warning for a plan that leaves out what *fault* names."""
    return f"left out: {fault.subject} computes wrongly here ({fault.found}); {AGAIN}"
