"""The Ray deployment for real: a Ray head on loopback, Dagster's daemon, and Materialize as the UI presses it."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest

from po_assets.automation.ray import DASHBOARD_VARIABLE, local_head
from po_assets_tests.automation.live import materialize, stop, wait_until
from po_assets_tests.automation.workplace import REPOSITORY

WORKSPACE = REPOSITORY / "workspace.yaml"


@dataclass
class StepProcesses:
    """What the operating system shows of steps while they run: their visible GPUs, and which ran at the same time."""

    devices: dict[str, set[str | None]] = field(default_factory=dict)
    together: list[set[str]] = field(default_factory=list)

    def look(self) -> None:
        """Note the step processes of this moment."""
        now = {process.environ()["DAGSTER_RUN_STEP_KEY"]: process for process in dagster_processes("execute_step")}
        for step, process in now.items():
            self.devices.setdefault(step, set()).add(process.environ().get("CUDA_VISIBLE_DEVICES"))
        self.together.append(set(now))


@dataclass
class Deployment:
    """A running deployment."""

    instance: dg.DagsterInstance
    seen: StepProcesses

    def materialize(self, *assets: str, resources: dict[str, Any]) -> str:
        """Press Materialize on assets (all of the graph when none is named); returns the run's id."""
        from dagster._core.workspace.load_target import WorkspaceFileTarget

        target = WorkspaceFileTarget([str(WORKSPACE)])
        job = "__ASSET_JOB" if assets else "product_owner_student"
        return materialize(self.instance, target, "po_assets", job, assets=assets, resources=resources)

    def wait_for(self, run_id: str, seconds: float = 240) -> dg.DagsterRun:
        """Wait until the run has ended."""

        def ended() -> dg.DagsterRun | None:
            run = self.instance.get_run_by_id(run_id)
            return run if run and run.is_finished else None

        return wait_until(ended, seconds, f"the end of run {run_id}")

    def will_be_retried(self, run_id: str) -> bool:
        """What Dagster says of a failed run, which it writes a moment after the failure."""

        def told() -> str | None:
            run = self.instance.get_run_by_id(run_id)
            return run.tags.get("dagster/will_retry") if run else None

        return wait_until(told, 60, f"whether run {run_id} is tried again") == "true"

    def retry_of(self, run_id: str) -> str:
        """The run that the daemon started for a failed one."""

        def retried() -> str | None:
            runs = self.instance.get_runs(dg.RunsFilter(tags={"dagster/parent_run_id": run_id}))
            return runs[0].run_id if runs else None

        return wait_until(retried, 90, f"a retry of run {run_id}")

    def events(self, run_id: str, kind: dg.DagsterEventType) -> list[dg.DagsterEvent]:
        """The run's events of one kind."""
        records = self.instance.get_records_for_run(run_id, of_type=kind).records
        return [record.event_log_entry.dagster_event for record in records if record.event_log_entry.dagster_event]

    def said(self, run_id: str) -> str:
        """Everything that was logged in a run."""
        return "\n".join(entry.user_message or str(entry.message) for entry in self.instance.all_logs(run_id))


def dagster_processes(command: str) -> list[psutil.Process]:
    """The processes `python dagster api <command>` of this deployment, without the shells around them."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, KeyError):
            words = process.cmdline()
            ours = words[2:4] == ["api", command] and process.environ()["PO_TEST_DEPLOYMENT"] == str(os.getpid())
            found += [process] if ours else []
    return found


@contextlib.contextmanager
def deployment(
    home: Path, settings: Path, monkeypatch: pytest.MonkeyPatch, *, gpus: int = 1, **variables: str
) -> Iterator[Deployment]:
    """The deployment with the instance settings of a file of `deploy/`, in `home`; waiting times are shortened."""
    text = settings.read_text().replace("poll_interval_seconds: 15", "poll_interval_seconds: 3")
    home.mkdir()
    (home / "dagster.yaml").write_text(text.replace("run_end_seconds: 30", "run_end_seconds: 3"))
    own = {"DAGSTER_HOME": str(home), "PO_EXECUTOR": "ray", "PO_TEST_DEPLOYMENT": str(os.getpid()), "PO_GPUS": "1"}
    for name, value in (own | variables).items():
        monkeypatch.setenv(name, value)
    for name in ("CUDA_VISIBLE_DEVICES", "PO_NUM_WORKERS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    with contextlib.ExitStack() as stack:
        monkeypatch.setenv(DASHBOARD_VARIABLE, stack.enter_context(local_head(gpus=gpus, cpus=8)))
        instance = stack.enter_context(dg.DagsterInstance.from_config(str(home)))
        log = stack.enter_context((home / "daemon.log").open("wb"))
        command = [sys.executable, "-m", "dagster._daemon", "run", "--workspace", str(WORKSPACE)]
        daemon = subprocess.Popen(command, stdout=log, stderr=log, cwd=home)
        stack.callback(stop, daemon)
        seen, done = StepProcesses(), threading.Event()

        def watch() -> None:
            while not done.wait(0.2):
                with contextlib.suppress(psutil.Error, KeyError):
                    seen.look()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        stack.callback(watcher.join, 10)
        stack.callback(done.set)
        try:
            yield Deployment(instance, seen)
        except BaseException:
            _show_jobs()
            raise


def _show_jobs() -> None:
    """What Ray knows of its jobs, for the report of a failed test."""
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(os.environ[DASHBOARD_VARIABLE])
    for job in client.list_jobs():
        print(f"{job.submission_id} {job.status} {job.message}\n{client.get_job_logs(job.submission_id)[-2000:]}")
