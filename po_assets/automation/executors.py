"""Where the steps of a run are executed, and what every run does before its first step.

The deployment chooses the executor with the variable PO_EXECUTOR in its own settings; run config and code are the same
everywhere. Dagster's queue counts the runs of one instance, and believes a run whose process was killed to be alive for
ever (the launcher of one machine has no health check). So each run holds a lock on its artifact root, whichever way it
was launched, and notes its process in a tag, by which `end_orphaned_runs` finds the dead.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import dagster as dg
import psutil
from dagster._core.errors import raise_execution_interrupts

from po_assets.automation.catch_up import refuse_below_failed_gate, root_tag
from po_assets.dag.compute import EXECUTOR_VARIABLE, POOL
from po_assets.errors import UserError
from po_assets.model import BaseModel, require_hardware
from po_assets.storage import Layout, LockedError, artifact_root, default_root, is_local, lock, remove_stale_staging

LOCK = ".run.lock"
NEVER_RETRIED = {"dagster/max_retries": "0"}
"""The tag of a run that would fail in the same way again, or that somebody is looking at."""
PROCESS_TAG = ".dagster/po_assets_process"
"""The prefix hides it from the runs list."""
_POLL_SECONDS = 2.0
_RUNNING = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]

Preparation = Callable[[Any, Any], AbstractContextManager[None]]
"""Given Dagster's plan context and execution plan: what a run is inside while its steps are executed."""


def step_executor() -> dg.ExecutorDefinition:
    """What `PO_EXECUTOR` names: `in_process` (the default), `ray` or `kubernetes`; one run per artifact root in each.

    Raises:
        UserError: the variable names something else, or something that is not installed.
    """
    name = os.environ.get(EXECUTOR_VARIABLE) or "in_process"
    try:
        match name:
            case "in_process":
                # One process per run: the steps of one machine wait for each other anyway, and each would import torch.
                return prepared(dg.in_process_executor, one_run_per_root, hardware_first)
            case "ray":
                from po_assets.automation.ray import ray_step_executor

                return ray_step_executor
            case "kubernetes":
                import dagster_k8s

                return prepared(dagster_k8s.k8s_job_executor, one_run_per_root)
    except ImportError as error:
        raise UserError(
            f"{EXECUTOR_VARIABLE} is {name!r}, and {error.name} is not installed: make setup EXTRAS={name}."
        ) from error
    raise UserError(f"{EXECUTOR_VARIABLE} is {name!r}; choose 'in_process', 'ray' or 'kubernetes'.")


class PreparedExecutor(dg.Executor):
    """An executor whose runs are inside preparations, and that is like another one in all else."""

    def __init__(self, inner: dg.Executor, *preparations: Preparation) -> None:
        self._inner = inner
        self._preparations = preparations

    @property
    def retries(self) -> Any:
        """As the inner executor has them."""
        return self._inner.retries

    @property
    def step_dependency_config(self) -> Any:
        """As the inner executor has it."""
        return self._inner.step_dependency_config

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[Any]:
        """Prepare, then execute the steps; a run that a person has to mend something for is not tried again."""
        with contextlib.ExitStack() as stack:
            try:
                for prepare in self._preparations:
                    stack.enter_context(prepare(plan_context, execution_plan))
                yield from self._inner.execute(plan_context, execution_plan)
            except Exception as error:
                # Of a resource, whose settings are wrong, it is the cause.
                if isinstance(error, UserError) or isinstance(error.__cause__, UserError):
                    plan_context.instance.add_run_tags(plan_context.run_id, NEVER_RETRIED)
                raise


def prepared(inner: dg.ExecutorDefinition, *preparations: Preparation) -> dg.ExecutorDefinition:
    """The executor with the same name and config, whose runs are inside the preparations, the first outermost."""
    create = inner.executor_creation_fn
    assert create is not None  # noqa: S101 - for the type checker

    return dg.ExecutorDefinition(
        name=inner.name,
        config_schema=cast("Any", inner.config_schema),  # may be given what it gives back
        requirements=inner.get_requirements,
        executor_creation_fn=lambda init_context: PreparedExecutor(create(init_context), *preparations),
        description=inner.description,
    )


@contextlib.contextmanager
def hardware_first(plan_context: Any, execution_plan: Any) -> Iterator[None]:
    """Refuse a run before its first step where a later one demands a GPU that this machine does not have.

    For steps that run here; Ray and Kubernetes place them on other machines.
    """
    steps = [execution_plan.get_step_by_key(key) for key in execution_plan.step_keys_to_execute]
    if any(step.pool == POOL for step in steps):
        names = ("profile", "base_model", "revision", "quantization")
        config = plan_context.dagster_run.run_config
        given: dict[str, Any] = {
            name: value for name in names if (value := resource_setting(config, "base_model", name)) is not None
        }
        require_hardware(BaseModel(**given).resolved())
    yield


@contextlib.contextmanager
def one_run_per_root(plan_context: Any, _execution_plan: Any) -> Iterator[None]:
    """Wait for the artifact root, saying so in the run, tidy it, and look at the gates of what the run starts from."""
    run: dg.DagsterRun = plan_context.dagster_run
    instance: dg.DagsterInstance = plan_context.instance
    layout = Layout(artifact_root(root_of(run.run_config)))
    instance.add_run_tags(run.run_id, {**process_tag(), **root_tag(layout)})
    with wait_for_root(layout, plan_context.log.info):
        for folder in layout.written_folders:
            for left in remove_stale_staging(folder):
                plan_context.log.info("Removed %s, which a killed process had left half written.", left)
        graph = plan_context.job.get_repository_definition().asset_graph
        layer = plan_context.job.get_definition().asset_layer
        checked = {check.asset_key for check in layer.asset_graph.asset_check_keys}
        refuse_below_failed_gate(instance, graph, layer.selected_asset_keys, checked, layout)
        yield


@contextlib.contextmanager
def hold_root(layout: Layout) -> Iterator[None]:
    """Hold the artifact root's lock, having seen that the root can be written to.

    Raises:
        LockedError: another run holds it.
        UserError: the root cannot be written to.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock(layout.root / LOCK))
            if not is_local(layout.root):  # there is no lock that would have been written
                probe = layout.root / ".write-check"
                probe.write_bytes(b"")
                probe.unlink(missing_ok=True)
        except LockedError:
            raise
        except Exception as error:
            # Every store has errors of its own.
            raise UserError(
                f"The artifact root {layout.root} cannot be written to ({type(error).__name__}: {error}). Create it or "
                "get the right to write there, or set PO_ARTIFACTS_ROOT to another one."
            ) from error
        yield


@contextlib.contextmanager
def wait_for_root(layout: Layout, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the artifact root, waiting while another run does; `say` is told once that it waits, and for whom."""
    told = False
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(hold_root(layout))
            except LockedError as error:
                if not told:
                    say(f"Another run writes to {layout.root} right now ({error}). Waiting until it ends.")
                told = True
                with raise_execution_interrupts():  # Dagster holds signals back here; a waiting run can be ended
                    time.sleep(_POLL_SECONDS)
            else:
                break
        yield


def process_tag() -> dict[str, str]:
    """The tag by which a run's process is found again."""
    process = psutil.Process()
    return {PROCESS_TAG: f"{socket.gethostname()}/{process.pid}/{_started(process)}"}


def _started(process: psutil.Process) -> str:
    """Which start of the machine, and how many seconds after it: the time of day can be set back while a run lives."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    start = boot.read_text().strip() if boot.is_file() else ""
    return f"{start}:{process.create_time() - psutil.boot_time():.2f}"


def end_orphaned_runs(instance: dg.DagsterInstance) -> list[str]:
    """End runs that count as running though their process, on this machine, is gone; returns their ids."""
    records = instance.get_run_records(dg.RunsFilter(statuses=_RUNNING))
    orphaned = [record.dagster_run for record in records if _is_dead(record.dagster_run.tags.get(PROCESS_TAG, ""))]
    for run in orphaned:
        if run.status == dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run)
        else:
            instance.report_run_failed(
                run,
                "The process that executed this run is gone: it was killed, memory ran out, or the machine restarted. "
                "What was finished is kept; run it again, or let the daemon retry it.",
            )
    _free_slots_of_ended_runs(instance)
    return [run.run_id for run in orphaned]


@dg.sensor(
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Marks runs as failed whose process is gone; they would block the queue for ever.",
)
def orphaned_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Look for runs whose process is gone."""
    ended = end_orphaned_runs(context.instance)
    return dg.SkipReason(
        f"Marked as failed, since their process is gone: {', '.join(run[:8] for run in ended)}"
        if ended
        else "Every run that counts as running has its process."
    )


def _free_slots_of_ended_runs(instance: dg.DagsterInstance) -> None:
    """Take pool slots back at once: a killed run keeps them, and without a daemon nobody else takes them back."""
    storage = instance.event_log_storage
    for pool in storage.get_concurrency_keys():
        for run_id in storage.get_concurrency_info(pool).active_run_ids:
            run = instance.get_run_by_id(run_id)
            if run is None or run.is_finished:
                storage.free_concurrency_slots_for_run(run_id)


def _is_dead(tag: str) -> bool:
    try:
        host, pid, started = tag.split("/")
        if host != socket.gethostname():
            return False  # of another machine or container: this one cannot tell
        process = psutil.Process(int(pid))
        # A zombie is dead; and a process of the same number that started at another time is another one.
        return process.status() == psutil.STATUS_ZOMBIE or _started(process) != started
    except psutil.NoSuchProcess:
        return True
    except (ValueError, psutil.AccessDenied):
        return False


def resource_setting(run_config: Mapping[str, Any], resource: str, name: str) -> str | None:
    """What a run's config sets for a resource, by its value or by the environment variable that it names."""
    value = run_config.get("resources", {}).get(resource, {}).get("config", {}).get(name)
    if isinstance(value, Mapping):
        value = os.environ.get(str(value.get("env")))
    return None if value is None else str(value)


def root_of(run_config: Mapping[str, Any]) -> str:
    """The artifact root that a run's config sets, or the default."""
    return resource_setting(run_config, "artifacts", "root") or default_root()
