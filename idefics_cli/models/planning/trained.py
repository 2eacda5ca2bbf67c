"""What a plan takes from the training of an adapter, and says about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from idefics_cli.core.adapters import LoraAdapter
from idefics_cli.core.types import LoadSpec
from idefics_cli.models.hub.adapters import config_digest, is_trained, read_record
from idefics_cli.models.hub.facts import ModelFacts
from idefics_cli.models.planning.placement import Placement, PlanChoices


def as_trained(choices: PlanChoices, model: ModelFacts) -> PlanChoices:
    """Return *choices* with the detail of the adapter of *model*, where the user chose none."""
    adapter, edges = model.adapter, model.shape.edges
    if adapter is None:
        return choices
    splitting = choices.splitting
    if splitting is None and model.splitting is not None:
        splitting = adapter.splitting
    edge = choices.longest_edge
    if edge is None and edges and adapter.longest_edge and edges.allows(adapter.longest_edge):
        edge = adapter.longest_edge
    return replace(choices, splitting=splitting, longest_edge=edge)


def other_detail(
    adapter: LoraAdapter | None, model: ModelFacts, option: Placement, edge: int | None
) -> str | None:
    """Return a warning if pictures have another detail than *adapter* was trained with.

    Args:
        adapter: The adapter.
        model: What is known about the model.
        option: The placement that the plan chose.
        edge: Longest edge that the plan chose; None for that of the checkpoint.
    """
    if adapter is None:
        return None
    changes = []
    can_split = model.splitting is not None
    if can_split and adapter.splitting is not None and adapter.splitting != option.splitting:
        words = ("off", "on")
        was, now = words[adapter.splitting], words[option.splitting]
        changes.append(f"with splitting {was}, which is {now} now")
    edges = model.shape.edges
    if edges and adapter.longest_edge and adapter.longest_edge != (edge or edges.usual):
        used = edge or edges.usual
        changes.append(f"with a longest edge of {adapter.longest_edge} pixels, which is {used} now")
    return f"the adapter {adapter.name} was trained {', and '.join(changes)}" if changes else None


def other_base(adapter: LoraAdapter | None, model: ModelFacts) -> str | None:
    """Return a warning if *adapter* was made for another model than *model*."""
    if adapter is None:
        return None
    base, repo, known = adapter.base, model.repo, adapter.base_config
    if known and model.folder is not None and known != config_digest(model.folder):
        return (
            f"the adapter {adapter.name} was trained on {base or 'a model'} with another "
            f"config.json than {model.name} has, so its answers may be wrong"
        )
    if "/" not in base.strip("/."):
        return None
    if Path(base).is_absolute() or Path(repo).is_absolute() or base.lower() == repo.lower():
        return None
    return f"the adapter {adapter.name} was made for {base}, and the model is {repo}"


def unfinished(model: ModelFacts) -> str | None:
    """Return a warning if the training of *model* or of its adapter has not ended."""
    if model.adapter is not None and not model.adapter.is_whole:
        what = f"the adapter {model.adapter.name}"
    elif model.folder is not None and not is_trained(read_record(model.folder, model.name)):
        what = model.name
    else:
        return None
    return f"the training of {what} has not ended; the same `idefics tune` goes on"


def adapter_place(adapter: LoraAdapter, spec: LoadSpec) -> str:
    """Return for what *adapter* was made, and where it is computed."""
    made_for = f"made for {adapter.base}; " if adapter.base else ""
    if spec.quantization != "none" and not spec.kernels.text:
        return f"{made_for}computed beside the quantized layers, and merged into the others"
    return f"{made_for}merged into the weights"
