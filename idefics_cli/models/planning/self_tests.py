"""What is left of a plan when kernels fail their self-tests: what loading then uses."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from idefics_cli.core.types import KernelChoice
from idefics_cli.models.planning.plan import Plan
from idefics_cli.models.planning.reasons import Reason, explain_products

_PARTS = ("text", "head", "connector", "vision", "mlp", "patches", "norm", "step")


def without_failing(plan: Plan, failing: Collection[str]) -> Plan:
    """Return *plan* without the kernels *failing*, because their self-tests fail.

    When a model is loaded, such a kernel is left out, and the next kernel for the same part of the
    model takes its place. Everything else stays.
    """
    if not failing:
        return plan
    former = plan.spec.kernels
    names: dict[str, tuple[str, ...]] = {
        part: tuple(name for name in getattr(former, part) if name not in failing)
        for part in _PARTS
    }
    attention = None if former.attention in failing else former.attention
    kernels = replace(former, attention=attention, **names)  # type: ignore[arg-type]  # the fields of `_PARTS`
    spec = replace(plan.spec, kernels=kernels)
    changed = {}
    if former.text != kernels.text and (products := explain_products(spec)) is not None:
        changed[products.subject] = products
    if former.step != kernels.step:
        why = f"the kernel `{former.step[0]}` fails its self-test"
        changed["decoding"] = Reason("decoding", "layer by layer", why)
    if former.attention != attention:
        why = f"the kernel `{former.attention}` fails its self-test"
        changed["attention"] = Reason("attention", spec.attention, why)
    return replace(
        plan,
        spec=spec,
        reasons=tuple(changed.get(reason.subject, reason) for reason in plan.reasons),
        warnings=(*plan.warnings, *(_warning(name, former, kernels) for name in failing)),
    )


def _warning(name: str, former: KernelChoice, now: KernelChoice) -> str:
    if name == former.attention:
        return f"the kernel `{name}` fails its self-test on this computer; `sdpa` replaces it"
    part = next(part for part in _PARTS if name in getattr(former, part))
    left = getattr(now, part)
    other = f"`{left[0]}`" if left else "torch"
    return f"the kernel `{name}` fails its self-test on this computer; {other} replaces it"
