"""What a training by several workers asks of Ray, whatever they train: a cluster, room in it, their words."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from po_assets.dag.compute import GPUS_VARIABLE, WORKERS_VARIABLE, default_num_workers, gpus_per_step
from po_assets.errors import UserError
from po_assets.storage.workers import available_cpus
from po_assets.text import Progress

if TYPE_CHECKING:
    from ray.util.queue import Queue

IN_RAY = "RAY_ADDRESS"  # Ray gives a job's processes this variable


@contextmanager
def connected(workers: int) -> Iterator[None]:
    """The cluster that this process is a job of, else a Ray of this machine's own, which ends with the block."""
    import ray

    ours = not ray.is_initialized()
    if ours and IN_RAY in os.environ:
        ray.init(log_to_driver=False)
    elif ours:
        cpus = max(workers, available_cpus())
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


def has_room(workers: int) -> bool:
    """Whether the workers get GPUs; raises `UserError` where Ray would wait for ever to place them."""
    import ray

    total = ray.cluster_resources()
    gpus = total.get("GPU", 0.0)
    if not gpus or not gpus_per_step():
        if total.get("CPU", 0.0) < workers:
            raise UserError(f"num_workers is {workers}, and Ray has {total.get('CPU', 0):g} CPU(s). Lower it.")
        return False
    # A step that is itself on a GPU cannot give it to a worker. It is on one where the default of workers is 1
    # (`op_tags`); what it sees does not tell, since Ray may have been started with some of the machine's GPUs.
    on_one = default_num_workers() == 1 and IN_RAY in os.environ and os.environ.get("CUDA_VISIBLE_DEVICES")
    held = 1.0 if on_one else 0.0
    if gpus - held < workers:
        raise UserError(
            f"num_workers is {workers}, and Ray has {gpus:g} GPU(s)"
            + (", one of which this step holds itself" if held else "")
            + f". Lower num_workers; or set {WORKERS_VARIABLE}={workers} instead, with which the step takes no GPU; or "
            f"{GPUS_VARIABLE}=0 to train on CPUs."
        )
    return True


@contextmanager
def passed_on(said: Queue, progress: Progress) -> Iterator[None]:
    """What the leader says appears here as it says it."""
    done = threading.Event()

    def listen() -> None:
        while not done.is_set() or said.size():
            for item in said.get_nowait_batch(said.size()):
                (progress.observe if isinstance(item, dict) else progress.say)(item)
            done.wait(0.5)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
    finally:
        done.set()
        listener.join(10)
        said.shutdown()


def own_error(error: BaseException) -> Exception | None:
    """The sentence for people among a worker group's failures."""
    failures = list(getattr(error, "worker_failures", {}).values())
    while failures:
        failure = failures.pop()
        if isinstance(failure, UserError):
            return failure
        inner = (getattr(failure, name, None) for name in ("_base_exc", "cause", "__cause__"))
        failures += [cause for cause in inner if isinstance(cause, BaseException)]
    return None
