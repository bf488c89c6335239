"""Steps as Ray jobs, through dagster-ray: what the project adds to its executor.

A step is told the project's settings, sees no GPU but its own, and a run whose steps no node of the cluster can ever
hold fails at once, where Ray would let it wait.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
from dagster._core.executor.step_delegating import (
    CheckStepHealthResult,
    StepDelegatingExecutor,
    StepHandler,
    StepHandlerContext,
)
from dagster._core.storage.tags import MAX_RETRIES_TAG
from dagster_ray import ray_executor
from dagster_ray.configs import RayExecutionConfig
from dagster_ray.core.executor import RayStepHandler

from po_assets.automation.processes import WrappedExecutor, one_run_per_root
from po_assets.dag.compute import GPUS_VARIABLE
from po_assets.errors import UserError

AUTOSCALING_VARIABLE = "PO_RAY_AUTOSCALING"
DASHBOARD_VARIABLE = "PO_RAY_DASHBOARD"

PASSED_ON = (
    DASHBOARD_VARIABLE,
    AUTOSCALING_VARIABLE,
    "PO_ARTIFACTS_ROOT",
    "PO_PROFILE",
    "PO_GPUS",
    "PO_NUM_WORKERS",
    "PO_TEACHER_BASE_URL",
    "PO_TEACHER_MODEL",
)
"""Settings that a run gets from where it was launched (`deploy/ray`) and its steps from it, shown on Ray's dashboard.

Secrets are none of them: they are the nodes' own.
"""

# Ray shows a job that asks for GPUs exactly those, but one that asks for none all of them.
_NO_GPU = "CUDA_VISIBLE_DEVICES="


class _StepHandler(StepHandler):
    """dagster-ray's handler; each step gets the run's settings, and those that say nothing of GPUs see none."""

    def __init__(self, inner: RayStepHandler) -> None:
        super().__init__()
        self._inner = inner
        self._settings = [*PASSED_ON, *inner.env_vars]

    @property
    def name(self) -> str:
        """As dagster-ray has it."""
        return str(self._inner.name)

    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        """Submit the step's Ray job."""
        (tags,) = step_handler_context.step_tags.values()
        hidden = [_NO_GPU] if RayExecutionConfig.from_tags(tags).num_gpus is None else []
        self._inner.env_vars = [*self._settings, *hidden]
        yield from self._inner.launch_step(step_handler_context)

    def check_step_health(self, step_handler_context: StepHandlerContext) -> CheckStepHealthResult:
        """Ask Ray for the job's state."""
        health: CheckStepHealthResult = self._inner.check_step_health(step_handler_context)
        return health

    def terminate_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        """Stop the step's Ray job."""
        yield from self._inner.terminate_step(step_handler_context)


class _FittingExecutor(WrappedExecutor):
    """dagster-ray's executor, after a look at whether the cluster's nodes can hold the run's steps."""

    def __init__(self, inner: dg.Executor, dashboard: str) -> None:
        super().__init__(inner)
        self._dashboard = dashboard

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[Any]:
        """Refuse the run before its first step, or execute it."""
        steps = {key: execution_plan.get_step_by_key(key).tags for key in execution_plan.step_keys_to_execute}
        if not os.environ.get(AUTOSCALING_VARIABLE) and (reason := unmet_needs(steps, node_totals(self._dashboard))):
            # Trying again would find the same cluster.
            plan_context.instance.add_run_tags(plan_context.run_id, {MAX_RETRIES_TAG: "0"})
            raise UserError(reason)
        yield from self._inner.execute(plan_context, execution_plan)


def node_totals(dashboard: str) -> list[Mapping[str, float]]:
    """What each living node of the cluster has (`CPU`, `GPU`, …), used or not; `dashboard` is the head's URL."""
    from ray.util.state import list_nodes

    return [node.resources_total for node in list_nodes(address=dashboard) if node.state == "ALIVE"]


def unmet_needs(steps: Mapping[str, Mapping[str, str]], nodes: Sequence[Mapping[str, float]]) -> str | None:
    """Why steps, given with their tags, fit on no node; None when all do."""
    most = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in ("CPU", "GPU")}
    without: dict[str, list[str]] = {"CPU": [], "GPU": []}
    for key, tags in steps.items():
        needs = RayExecutionConfig.from_tags(tags)
        for name, need in (("GPU", needs.num_gpus), ("CPU", needs.num_cpus)):
            if (need or 0) > most[name]:
                without[name].append(key)
    if without["GPU"]:
        return (
            f"{_listed(without['GPU'])} ask(s) for a GPU, and the Ray cluster has {_nodes(nodes)} without any. Start "
            f"Ray where there is one, or set {GPUS_VARIABLE}=0 to compute on CPUs (profile 'embedded' only). If GPU "
            f"nodes are added on demand, set {AUTOSCALING_VARIABLE}=1."
        )
    if without["CPU"]:
        return (
            f"{_listed(without['CPU'])} ask(s) for more CPUs than any of the cluster's {_nodes(nodes)} has "
            f"({most['CPU']:g}). Start Ray with more, or let the step ask for fewer in po_assets/dag/compute.py."
        )
    return None


def _listed(steps: Sequence[str]) -> str:
    return ", ".join(sorted(steps))


def _nodes(nodes: Sequence[object]) -> str:
    return f"{len(nodes)} node" + ("" if len(nodes) == 1 else "s")


@dg.executor(
    name="ray", config_schema=ray_executor.config_schema, requirements=dg.multiple_process_executor_requirements()
)
def _ray_step_executor(init_context: dg.InitExecutorContext) -> _FittingExecutor:
    """Each step as a Ray job."""
    create = ray_executor.executor_creation_fn
    assert create is not None  # noqa: S101 - for the type checker
    inner = create(init_context)
    assert isinstance(inner, StepDelegatingExecutor)  # noqa: S101
    handler: RayStepHandler = inner._step_handler  # noqa: SLF001 - dagster-ray keeps it there
    inner._step_handler = _StepHandler(handler)  # noqa: SLF001
    return _FittingExecutor(inner, handler.client.get_address())


ray_step_executor = one_run_per_root(_ray_step_executor).configured({"ray": {}}, name="ray")
