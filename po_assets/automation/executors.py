"""Where the steps of a run are executed: in the run's own process, as Ray jobs, or as Kubernetes jobs.

The deployment chooses, with the variable PO_EXECUTOR in its own settings; run config and code are the same everywhere.
"""

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import dagster as dg
from dagster._core.storage.tags import MAX_RETRIES_TAG

from po_assets.automation.processes import WrappedExecutor, one_run_per_root, resource_setting, wrapped
from po_assets.dag.compute import EXECUTOR_VARIABLE, POOL
from po_assets.errors import UserError


class HardwareFirstExecutor(WrappedExecutor):
    """Refuses a run before its first step where a later one demands a GPU that this machine does not have.

    For steps that run here; Ray and Kubernetes place them on other machines.
    """

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[Any]:
        """Look at profile and quantization if any step computes with the model, then execute."""
        from po_assets.model import require_hardware, resolve_spec

        steps = [execution_plan.get_step_by_key(key) for key in execution_plan.step_keys_to_execute]
        if any(step.pool == POOL for step in steps):
            setting = partial(resource_setting, plan_context.dagster_run.run_config, "base_model")
            profile, name, revision = setting("profile"), setting("base_model"), setting("revision")
            try:
                require_hardware(resolve_spec(profile, name, revision, quantization=setting("quantization")))
            except UserError:
                # Trying again would find the same machine.
                plan_context.instance.add_run_tags(plan_context.run_id, {MAX_RETRIES_TAG: "0"})
                raise
        yield from self._inner.execute(plan_context, execution_plan)


def step_executor() -> dg.ExecutorDefinition:
    """What `PO_EXECUTOR` names: `in_process` (the default), `ray` or `kubernetes`; one run per artifact root in each.

    Raises:
        ValueError: the variable names something else, or something that is not installed.
    """
    name = os.environ.get(EXECUTOR_VARIABLE) or "in_process"
    try:
        match name:
            case "in_process":
                # One process per run: the steps of one machine wait for each other anyway, and each would import torch.
                return one_run_per_root(wrapped(dg.in_process_executor, HardwareFirstExecutor))
            case "ray":
                from po_assets.automation.ray_steps import ray_step_executor

                return ray_step_executor
            case "kubernetes":
                import dagster_k8s

                return one_run_per_root(dagster_k8s.k8s_job_executor)
    except ImportError as error:
        raise ValueError(
            f"{EXECUTOR_VARIABLE} is {name!r}, and {error.name} is not installed: make setup EXTRAS={name}."
        ) from error
    raise ValueError(f"{EXECUTOR_VARIABLE} is {name!r}; choose 'in_process', 'ray' or 'kubernetes'.")
