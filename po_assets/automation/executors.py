"""Where the steps of a run are executed: in the run's own process, as Ray jobs, or as Kubernetes jobs.

The deployment chooses, with the variable PO_EXECUTOR in its own settings; run config and code are the same everywhere.
"""

import os

import dagster as dg

from po_assets.automation.processes import one_run_per_root

EXECUTOR_VARIABLE = "PO_EXECUTOR"


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
                return one_run_per_root(dg.in_process_executor)
            case "ray":
                from po_assets.automation.ray_steps import ray_step_executor

                return ray_step_executor
            case "kubernetes":
                import dagster_k8s

                return one_run_per_root(dagster_k8s.k8s_job_executor)
    except ImportError as error:
        raise ValueError(
            f"{EXECUTOR_VARIABLE} is {name!r}, and {error.name} is not installed: pip install 'po-assets[{name}]'."
        ) from error
    raise ValueError(f"{EXECUTOR_VARIABLE} is {name!r}; choose 'in_process', 'ray' or 'kubernetes'.")
