"""Several workers for one adapter, started by Ray Train: on the cores or GPUs of this machine, or of a Ray cluster.

Only for `num_workers` above 1; one worker needs no Ray. What the workers do is `student.make_student_here`.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from po_assets.dag.compute import GPUS_VARIABLE, RAY_ON_LOOPBACK, WORKERS_VARIABLE, available_cores, gpus_per_step
from po_assets.errors import UserError
from po_assets.model import ensure_base_model
from po_assets.storage import Layout
from po_assets.training.progress import Progress
from po_assets.training.recipe import Recipe
from po_assets.training.student import Student, make_student_here

if TYPE_CHECKING:
    from ray.util.queue import Queue

_KNOWN = (UserError, UserError, UserError, UserError, UserError)
# Ray gives a job's processes this variable.
_IN_RAY = "RAY_ADDRESS"


@dataclass(frozen=True)
class _Work:
    """What every worker is sent."""

    layout: Layout
    pairs: Sequence[tuple[str, str]]
    recipe: Recipe
    said: Queue


def make_student_together(
    layout: Layout, pairs: Sequence[tuple[str, str]], recipe: Recipe, progress: Progress
) -> Student:
    """`make_student` with the training done by `recipe.num_workers` workers; a lost worker ends all of them.

    Trained again, they go on from the last checkpoint. Raises what `make_student` does, and `UserError` where Ray
    is missing or has too little for the workers.
    """
    try:
        os.environ.update({} if _IN_RAY in os.environ else RAY_ON_LOOPBACK)  # Ray reads it when it is imported
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
        from ray.train.v2.api.exceptions import TrainingFailedError
        from ray.util.queue import Queue
    except ImportError as error:
        raise UserError(
            f"num_workers is {recipe.num_workers}, and more than one worker needs Ray, which is not installed: "
            "make setup EXTRAS=ray, or set num_workers to 1."
        ) from error
    ensure_base_model(recipe.model, layout)  # once, before every worker does
    with _connected(recipe.num_workers), tempfile.TemporaryDirectory(prefix="ray-train-") as folder:
        on_gpus = _has_room(recipe.num_workers)
        said = Queue(actor_options={"num_cpus": 0})
        trainer = TorchTrainer(
            _work,
            train_loop_config={"work": _Work(layout, pairs, recipe, said)},
            scaling_config=ScalingConfig(num_workers=recipe.num_workers, use_gpu=on_gpus),
            run_config=RunConfig(name="lora_adapter", storage_path=folder),
        )
        progress.say(f"Starting {recipe.num_workers} workers with Ray Train, each on {'a GPU' if on_gpus else 'CPUs'}.")
        with _passed_on(said, progress):
            try:
                student = trainer.fit().return_value
            except TrainingFailedError as error:
                raise _own_error(error) or error from None
    assert isinstance(student, Student)  # noqa: S101 - the leader's, for the type checker
    return student


def _work(config: dict[str, Any]) -> Student | None:
    """A worker's part, in a process of its own."""
    import ray.train

    work: _Work = config["work"]
    context = ray.train.get_context()
    cores = max(1, available_cores() // context.get_local_world_size())
    progress = Progress(lambda _line: None)
    if context.get_world_rank() == 0:
        progress = Progress(work.said.put, work.said.put)
    recipe = replace(work.recipe, workers=work.recipe.workers or cores)
    return make_student_here(work.layout, work.pairs, recipe, progress)


@contextmanager
def _connected(workers: int) -> Iterator[None]:
    """The cluster that this process is a job of, else a Ray of this machine's own, which ends with the block."""
    import ray

    ours = not ray.is_initialized()
    if ours and _IN_RAY in os.environ:
        ray.init(log_to_driver=False)
    elif ours:
        cpus = max(workers, available_cores())
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


def _has_room(workers: int) -> bool:
    """Whether the workers get GPUs; raises `UserError` where Ray would wait for ever to place them."""
    import ray

    total = ray.cluster_resources()
    gpus = total.get("GPU", 0.0)
    if not gpus or not gpus_per_step():
        if total.get("CPU", 0.0) < workers:
            raise UserError(f"num_workers is {workers}, and Ray has {total.get('CPU', 0):g} CPU(s). Lower it.")
        return False
    # A step that is itself on a GPU cannot give it to a worker.
    held = 1.0 if _IN_RAY in os.environ and os.environ.get("CUDA_VISIBLE_DEVICES") else 0.0
    if gpus - held < workers:
        raise UserError(
            f"num_workers is {workers}, and Ray has {gpus:g} GPU(s)"
            + (", one of which this step holds itself" if held else "")
            + f". Lower num_workers; or set {WORKERS_VARIABLE}={workers} instead, with which the step takes no GPU; or "
            f"{GPUS_VARIABLE}=0 to train on CPUs."
        )
    return True


@contextmanager
def _passed_on(said: Queue, progress: Progress) -> Iterator[None]:
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


def _own_error(error: BaseException) -> Exception | None:
    """The sentence for people among a worker group's failures."""
    failures = list(getattr(error, "worker_failures", {}).values())
    while failures:
        failure = failures.pop()
        if isinstance(failure, _KNOWN):
            return failure
        inner = (getattr(failure, name, None) for name in ("_base_exc", "cause", "__cause__"))
        failures += [cause for cause in inner if isinstance(cause, BaseException)]
    return None
