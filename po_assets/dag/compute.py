"""What a step that computes with the model asks of the machine it runs on; no other step asks for anything.

The one place that says it. The assets that train or generate, and the checks that load the model, take these values,
so that pressing Materialize in the UI gets a GPU too (tags of a job would not count there). What launches the steps
reads its own tag: dagster-ray `dagster-ray/config`, dagster-k8s `dagster-k8s/config`; a single process reads neither.
"""

import math
import os
from typing import Any

import dagster as dg

from po_assets.errors import UserError
from po_assets.storage.workers import available_cpus

EXECUTOR_VARIABLE = "PO_EXECUTOR"
GPUS_VARIABLE = "PO_GPUS"
WORKERS_VARIABLE = "PO_NUM_WORKERS"

POOL = "gpu"
"""Dagster's pool of these steps: how many of them may run at once is the instance's to limit."""

# Ray takes 127.0.0.1 for a way to name the machine and listens everywhere, unless it is told that there is no cluster.
# It asks for a token where it finds one in the home directory, but only in some of its processes, unless told not to.
RAY_ON_LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
}

# A step whose process dies (out of memory, a lost node) is started again and resumes from its checkpoint or its cached
# answers; what cannot work however often it is tried raises `dagster.Failure(allow_retries=False)`. Only where a step
# has a process of its own: elsewhere the run dies with it, and Dagster would start a step again that Ctrl-C interrupts.
_OWN_PROCESS = os.environ.get(EXECUTOR_VARIABLE) in {"ray", "kubernetes"}
CRASH_RETRY = dg.RetryPolicy(max_retries=2, delay=5) if _OWN_PROCESS else None


def gpus_per_step() -> float:
    """GPUs that a step asks for: 1, or what `PO_GPUS` says: 0 (compute on CPUs) or a part of one GPU to be shared.

    Raises:
        UserError: the variable holds anything else, or a part of a GPU where the steps are Kubernetes Jobs.
    """
    text = os.environ.get(GPUS_VARIABLE) or "1"
    try:
        gpus = float(text)
    except ValueError:
        gpus = math.nan
    if not 0 <= gpus <= 1:
        raise UserError(
            f"{GPUS_VARIABLE} is {text!r}. Use 1 (a GPU for each step, the default), 0 (no GPU: compute on CPUs), or a "
            f"fraction such as 0.5 (two steps share a GPU). More GPUs for one training: {WORKERS_VARIABLE}."
        )
    if gpus not in {0, 1} and os.environ.get(EXECUTOR_VARIABLE) == "kubernetes":
        raise UserError(
            f"{GPUS_VARIABLE} is {text!r}, and Kubernetes gives a pod whole GPUs only. Use 1 (the default) or 0 (no "
            "GPU: compute on CPUs). To share GPUs there, turn on time-slicing in NVIDIA's device plugin and keep the 1."
        )
    return gpus


def gpu_share() -> float:
    """The share of a GPU's memory that is this step's: others take the rest."""
    return gpus_per_step() or 1.0


def default_num_workers() -> int:
    """Processes that share one training: 1, or what `PO_NUM_WORKERS` says.

    Raises:
        UserError: the variable holds no whole number above 0.
    """
    text = os.environ.get(WORKERS_VARIABLE) or "1"
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{WORKERS_VARIABLE} is {text!r}; use a whole number, 1 or more.")
    return int(text)


def op_tags(num_workers: int = 1) -> dict[str, Any]:
    """The tags of a step whose work `num_workers` processes share.

    On Ray, shared work is done by Ray Train's workers, each with a GPU of its own; the step that waits for them takes
    none. On Kubernetes all workers run in the step's own pod.
    """
    gpus = gpus_per_step()
    if gpus == 0:
        # The cores also decide how many threads PyTorch uses there; so two such steps do not share a machine.
        return {"dagster-ray/config": {"num_cpus": available_cpus()} if num_workers == 1 else {}}
    return {
        "dagster-ray/config": {"num_gpus": gpus if num_workers == 1 else 0},  # 0 hides none from its workers
        "dagster-k8s/config": {
            "container_config": {"resources": {"limits": {"nvidia.com/gpu": str(math.ceil(gpus) * num_workers)}}},
            "pod_spec_config": {
                # The label of NVIDIA's GPU feature discovery, and the taint with which GPU nodes keep others away.
                "node_selector": {"nvidia.com/gpu.present": "true"},
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            },
        },
    }


GPU_STEP = op_tags()
"""Of `baseline_report`, `eval_report` and the checks that load the model."""

TRAINING_STEP = op_tags(default_num_workers())
"""Of `lora_adapter`."""
