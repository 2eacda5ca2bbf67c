"""`--ray`: workers on the nodes of a Ray cluster, each with a plan that its node makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from idefics_cli.cli.commands.caption.devices import Workers, plan_workers
from idefics_cli.cli.commands.caption.inputs import Inputs
from idefics_cli.cli.invocation import Invocation
from idefics_cli.cli.model_choice import find_facts, plan_choices, plan_here, with_base_model
from idefics_cli.cli.server_choice import telling_origin
from idefics_cli.cli.services import Services
from idefics_cli.core.errors import PlanError, UsageError
from idefics_cli.core.types import LoadSpec, Progress
from idefics_cli.core.units import counted
from idefics_cli.engine.factory import engine_factory
from idefics_cli.engine.protocol import Engine, EngineFactory

if TYPE_CHECKING:
    from idefics_cli.caption.executors import ExecutorKind, NamedFactory
    from idefics_cli.caption.executors.cluster import Cluster, Node, NodeShare
    from idefics_cli.caption.executors.warm import WarmProcesses
    from idefics_cli.config.settings import Settings
    from idefics_cli.models.hub.facts import ModelFacts
    from idefics_cli.models.planning.plan import Plan, PlanChoices

MOST_WORKERS = 512


@dataclass(frozen=True, slots=True)
class NodeFactory:
    """Makes the engine of a worker on a node, by a plan of the node in the format of the run.

    Attributes:
        facts: What is known about the model.
        choices: The choices of the user, and the dtype and quantization of the run.
        reference: How the model runs where the plan of the run was made.
    """

    facts: ModelFacts
    choices: PlanChoices
    reference: LoadSpec

    def __call__(self, *, progress: Progress | None = None) -> Engine:
        """Plan for this node, load the model, and return its engine.

        Raises:
            PlanError: If this node cannot run the format of the run.
        """
        spec = plan_on_node(self.facts, self.choices).spec
        if spec.splitting != self.reference.splitting:
            raise PlanError(
                "its plan would cut pictures in another way than that of the run",
                hint="`--splitting` or `--no-splitting` decides for all",
            )
        return engine_factory(spec)(progress=progress)


@dataclass(frozen=True, slots=True)
class ClusterWorkers(Workers):
    """The workers on a cluster; all have one plan, in whose format each node makes its own.

    Attributes:
        cluster: The cluster.
        factory: Makes the engine of each.
    """

    cluster: Cluster
    factory: NodeFactory

    @property
    def described(self) -> str:
        """A sentence about the workers."""
        return f"each node makes a plan in this format for {counted(len(self.names), 'worker')}"

    @property
    def executor(self) -> ExecutorKind:
        """The executor of a run with these workers."""
        from idefics_cli.caption.executors.cluster import cluster_executor

        return partial(cluster_executor, cluster=self.cluster)

    def factories(self, make: Callable[[LoadSpec], EngineFactory]) -> list[NamedFactory]:
        """Return the factory of the engine of each worker; *make* is not used."""
        return [(name, self.factory) for name in self.names]


def find_workers(
    invocation: Invocation, given: Inputs, warm: WarmProcesses | None = None
) -> Workers | None:
    """Return the workers of `--devices` or `--ray`; None without these options.

    Args:
        invocation: The command.
        given: Its inputs.
        warm: Processes for the workers of `--devices`.

    Raises:
        UsageError: If an option is wrong, or contradicts another one.
        PlanError: If the model cannot run there.
        IdeficsError: If the cluster cannot be used.
    """
    settings = invocation.settings
    if settings.ray is None:
        if invocation.resolved.origins["workers"].source == "flag":
            raise UsageError("--workers needs --ray", hint="`--devices cpu:2` is for this machine")
        return None if settings.server else plan_workers(invocation, given, warm)
    if settings.devices is not None:
        raise UsageError("--ray and --devices exclude each other")
    if settings.server is not None:
        with telling_origin(invocation):
            raise UsageError("--ray and --server exclude each other")
    if given.fileless:
        raise UsageError(
            f"--ray shares files among nodes, and {given.fileless} is one picture",
            hint="leave `--ray` out",
        )
    if settings.device not in ("auto", "cpu", "cuda"):
        raise UsageError(
            f"the cluster gives each worker its GPU, so that --ray excludes `{settings.device}`",
            hint="`--device cuda` or `--device cpu`",
        )
    return _plan(invocation, settings.ray)


def plan_on_node(facts: ModelFacts, choices: PlanChoices) -> Plan:
    """Return the plan of the machine of this process; a node of a cluster calls this."""
    return plan_here(Services(), facts, choices)


def choose_share(nodes: Sequence[Node], settings: Settings) -> tuple[NodeShare, int]:
    """Return what each worker needs of a node, and the number of workers.

    A worker has a GPU, if the cluster has any. Else it has as many processors as the smallest
    node, or as `--threads` says.

    Raises:
        UsageError: If nothing fits now, and `--workers` does not say how many are wanted.
    """
    from idefics_cli.caption.executors.cluster import NodeShare

    gpus = sum(node.gpus for node in nodes)
    if settings.device == "cuda" or (settings.device == "auto" and gpus):
        share, fitting, lacking = NodeShare(gpus=1), gpus, "GPU"
    else:
        cpus = [node.cpus for node in nodes if node.cpus]
        share = NodeShare(cpus=settings.threads or min(cpus, default=1))
        fitting, lacking = sum(count // share.cpus for count in cpus), "processor"
        if share.cpus > 1:
            lacking = f"node with {share.cpus} processors"
    count = settings.workers or min(fitting, MOST_WORKERS)
    if not count:
        raise UsageError(
            f"the cluster has no {lacking} now",
            hint="`--workers N` asks for N workers, for which an autoscaling cluster adds nodes",
        )
    return share, count


def _plan(invocation: Invocation, address: str) -> ClusterWorkers:
    from idefics_cli.caption.executors.cluster import run_on

    console, settings = invocation.console, invocation.settings
    with console.status("starting") as progress:
        progress("connecting to the cluster", None)
        cluster = invocation.services.open_cluster(address)
        share, count = choose_share(cluster.nodes(), settings)
        cluster = cluster.with_share(share)
        facts = find_facts(with_base_model(invocation))
        choices = plan_choices(settings)
        if share.gpus:
            # A worker that does not fit into its GPU must not run on the processor instead.
            choices = replace(choices, device="cuda:0")
        else:
            choices = replace(choices, device="cpu", threads=share.cpus)
        progress("making a plan on a node", None)
        plan = run_on(cluster, partial(plan_on_node, facts, choices), console.note)
    choices = replace(choices, dtype=plan.spec.dtype, quantization=plan.spec.quantization)
    names = tuple(str(number + 1) for number in range(count))
    return ClusterWorkers(names, (plan,) * count, cluster, NodeFactory(facts, choices, plan.spec))
