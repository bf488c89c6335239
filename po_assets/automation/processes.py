"""Runs and their processes: one run at a time writes into an artifact root, and a dead one does not block the queue.

Dagster's queue counts the runs of one instance, and believes a run whose process was killed to be alive for ever (the
launcher of one machine has no health check). So each run holds a lock on its artifact root, whichever way it was
launched, and notes its process in a tag, by which `left_over_runs` finds the dead.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import dagster as dg
import psutil
from dagster._core.errors import raise_execution_interrupts
from dagster._core.execution.retries import RetryMode

from po_assets.automation.gates import refuse_below_failed_gate
from po_assets.storage import Layout, LockedError, artifact_root, default_root, lock, remove_left_over_staging

PROCESS_TAG = "po_assets/process"
LOCK = ".run.lock"
_POLL_SECONDS = 2.0
_RUNNING = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


@contextlib.contextmanager
def wait_for_root(layout: Layout, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the artifact root's lock, waiting while another run does; `say` is told once that it waits, and for whom."""
    told = False
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(lock(layout.root / LOCK))
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
    return {PROCESS_TAG: f"{socket.gethostname()}/{process.pid}/{process.create_time():.2f}"}


def left_over_runs(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """Runs that count as running though the process that executed them, on this machine, is gone."""
    records = instance.get_run_records(dg.RunsFilter(statuses=_RUNNING))
    return [record.dagster_run for record in records if _is_dead(record.dagster_run.tags.get(PROCESS_TAG, ""))]


def end_left_over_runs(instance: dg.DagsterInstance) -> list[str]:
    """Have the instance count left-over runs as what they are; returns their ids."""
    ended = []
    for run in left_over_runs(instance):
        if run.status == dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run)
        else:
            instance.report_run_failed(
                run,
                "The process that executed this run is gone: it was killed, memory ran out, or the machine restarted. "
                "What was finished is kept; run it again, or let the daemon retry it.",
            )
        ended.append(run.run_id)
    _free_slots_of_ended_runs(instance)
    return ended


def _free_slots_of_ended_runs(instance: dg.DagsterInstance) -> None:
    """Take pool slots back at once: a killed run keeps them, and without a daemon nobody else takes them back."""
    storage = instance.event_log_storage
    for pool in storage.get_concurrency_keys():
        for run_id in storage.get_concurrency_info(pool).active_run_ids:
            run = instance.get_run_by_id(run_id)
            if run is None or run.is_finished:
                storage.free_concurrency_slots_for_run(run_id)


@dg.sensor(
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Marks runs as failed whose process is gone; they would block the queue for ever.",
)
def left_over_runs_end(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Look for runs whose process is gone."""
    ended = end_left_over_runs(context.instance)
    return dg.SkipReason(
        f"Marked as failed, since their process is gone: {', '.join(run[:8] for run in ended)}"
        if ended
        else "Every run that counts as running has its process."
    )


class WrappedExecutor(dg.Executor):
    """An executor that does something before another one, and is like that one in all else."""

    def __init__(self, inner: dg.Executor) -> None:
        self._inner = inner

    @property
    def retries(self) -> RetryMode:
        """As the wrapped executor has them."""
        return self._inner.retries

    @property
    def step_dependency_config(self) -> Any:
        """As the wrapped executor has it."""
        return self._inner.step_dependency_config


class OneRunPerRootExecutor(WrappedExecutor):
    """An executor under the artifact root's lock, and with gates that hold across runs."""

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[Any]:
        """Wait for the lock, saying so in the run, look at the gates of what the run starts from, execute the steps."""
        run: dg.DagsterRun = plan_context.dagster_run
        instance: dg.DagsterInstance = plan_context.instance
        instance.add_run_tags(run.run_id, process_tag())
        layout = Layout(artifact_root(root_of(run.run_config)))

        with wait_for_root(layout, plan_context.log.info):
            for folder in layout.written_folders:
                for left in remove_left_over_staging(folder):
                    plan_context.log.info("Removed %s, which a killed process had left half written.", left)
            graph = plan_context.job.get_repository_definition().asset_graph
            layer = plan_context.job.get_definition().asset_layer
            checked = {check.asset_key for check in layer.asset_graph.asset_check_keys}
            refuse_below_failed_gate(instance, graph, layer.selected_asset_keys, checked)
            yield from self._inner.execute(plan_context, execution_plan)


def wrapped(inner: dg.ExecutorDefinition, wrapper: type[WrappedExecutor]) -> dg.ExecutorDefinition:
    """The executor with the same name and config, each one made in a wrapper."""
    create = inner.executor_creation_fn
    assert create is not None  # noqa: S101 - for the type checker

    return dg.ExecutorDefinition(
        name=inner.name,
        config_schema=cast("Any", inner.config_schema),  # may be given what it gives back
        requirements=inner.get_requirements,
        executor_creation_fn=lambda init_context: wrapper(create(init_context)),
        description=inner.description,
    )


def one_run_per_root(inner: dg.ExecutorDefinition) -> dg.ExecutorDefinition:
    """The executor whose runs on one artifact root come one after the other."""
    return wrapped(inner, OneRunPerRootExecutor)


def resource_setting(run_config: Mapping[str, Any], resource: str, name: str) -> str | None:
    """What a run's config sets for a resource, by its value or by the environment variable that it names."""
    value = run_config.get("resources", {}).get(resource, {}).get("config", {}).get(name)
    if isinstance(value, Mapping):
        value = os.environ.get(str(value.get("env")))
    return None if value is None else str(value)


def root_of(run_config: Mapping[str, Any]) -> str:
    """The artifact root that a run's config sets, or the default."""
    return resource_setting(run_config, "artifacts", "root") or default_root()


def _is_dead(tag: str) -> bool:
    try:
        host, pid, created = tag.split("/")
        if host != socket.gethostname():
            return False  # of another machine or container: this one cannot tell
        process = psutil.Process(int(pid))
        # A zombie is dead; and a process of the same number that started at another time is another one.
        return process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - float(created)) > 1
    except psutil.NoSuchProcess:
        return True
    except (ValueError, psutil.AccessDenied):
        return False
