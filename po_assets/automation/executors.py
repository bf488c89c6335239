"""Where the steps of a run are executed: in the run's own process, as Ray jobs, or as Kubernetes jobs.

The deployment chooses, with the variable PO_EXECUTOR in its own settings; run config and code are the same everywhere.
"""

import os

import dagster as dg

EXECUTOR_VARIABLE = "PO_EXECUTOR"


def step_executor(in_process: dg.ExecutorDefinition) -> dg.ExecutorDefinition:
    """What `PO_EXECUTOR` names: `in_process` (the given one; the default), `ray` or `kubernetes`.

    Raises:
        ValueError: the variable names something else, or something that is not installed.
    """
    name = os.environ.get(EXECUTOR_VARIABLE) or "in_process"
    try:
        match name:
            case "in_process":
                return in_process
            case "ray":
                from po_assets.automation.ray_steps import ray_step_executor

                return ray_step_executor
            case "kubernetes":
                import dagster_k8s

                executor: dg.ExecutorDefinition = dagster_k8s.k8s_job_executor
                return executor
    except ImportError as error:
        raise ValueError(
            f"{EXECUTOR_VARIABLE} is {name!r}, and {error.name} is not installed: pip install 'po-assets[{name}]'."
        ) from error
    raise ValueError(f"{EXECUTOR_VARIABLE} is {name!r}; choose 'in_process', 'ray' or 'kubernetes'.")
