"""Steps as Ray jobs: who gets a GPU, what a dead worker costs, and what is said where there is no GPU."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest
import yaml
from ray.job_submission import JobSubmissionClient

from po_assets.automation import ray
from po_assets.automation.ray import PASSED_ON, steps_at_once, unmet_needs
from po_assets.dag.compute import POOL
from po_assets.errors import UserError
from po_assets.serving.server import listen
from po_assets.storage import Layout
from po_assets.training.student import adapter_problem
from po_assets_tests.automation.live import wait_until
from po_assets_tests.automation.workplace import REPOSITORY
from po_assets_tests.deploy.ray_deployment import Deployment, dagster_processes, deployment
from po_assets_tests.processes import free_port
from po_assets_tests.training.tiny_training import make_artifacts

ONE_BOX = REPOSITORY / "deploy" / "ray" / "dagster.yaml"


def tiny_resources(layout: Layout, **recipe: Any) -> dict[str, Any]:
    """Settings with which the tiny model is trained in some hundred steps, each of them a checkpoint."""
    settings = {"rank": 4, "alpha": 8, "learning_rate": 1e-2, "epochs": 100.0, "gradient_accumulation": 4}
    return {
        "base_model": {"base_model": str(layout.root / "tiny")},
        "recipe": {**settings, "precision": "float32", "checkpoint_seconds": 0.0, "workers": 1, **recipe},
    }


def steps_done(layout: Layout) -> int:
    """How far the newest checkpoint is."""
    folder = Path(str(layout.checkpoints))
    names = [path.name for path in folder.iterdir() if path.name.startswith("step-")] if folder.exists() else []
    return max((int(name.removeprefix("step-")) for name in names), default=0)


def kill_training(run: Deployment, layout: Layout, after: int, *more: str) -> int:
    """Kill -9 the training step (and processes of `more` commands) when `after` steps are saved; returns the steps."""
    wait_until(lambda: steps_done(layout) > after, 120, f"a checkpoint after step {after}")
    for command in (*more, "execute_step"):
        for process in dagster_processes(command):
            process.kill()
    return steps_done(layout)


@pytest.mark.slow
def test_materialize_gets_a_gpu_and_recovers_from_dead_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Materialize on lora_adapter alone; its process is killed, then the run's too; training resumes each time."""
    layout = make_artifacts(tmp_path / "artifacts")
    root = str(layout.root)
    with deployment(tmp_path / "home", ONE_BOX, monkeypatch, PO_ARTIFACTS_ROOT=root) as ray:
        first = ray.materialize("lora_adapter", resources=tiny_resources(layout))
        saved = kill_training(ray, layout, 20)
        # dagster-ray looks after a step every 20 seconds; the step is started again in the same run.
        wait_until(lambda: steps_done(layout) > saved + 20, 120, "the training to go on")
        (retry,) = ray.events(first, dg.DagsterEventType.STEP_UP_FOR_RETRY)
        assert retry.step_key == "lora_adapter"
        assert "Resuming after step" in ray.said(first)

        saved_again = kill_training(ray, layout, saved + 20, "execute_run")
        assert ray.wait_for(first).status == dg.DagsterRunStatus.FAILURE
        second = ray.retry_of(first)
        assert ray.wait_for(second).status == dg.DagsterRunStatus.SUCCESS, ray.said(second)
        (made,) = ray.events(second, dg.DagsterEventType.ASSET_MATERIALIZATION)
        resumed = made.materialization.metadata["resumed_at_step"].value
        assert saved_again <= resumed + 1
        assert resumed > saved > 20
        assert made.materialization.metadata["steps"].value == 300
        assert adapter_problem(layout.adapter) is None

        checks = ray.events(second, dg.DagsterEventType.ASSET_CHECK_EVALUATION)
        assert {check.asset_check_evaluation_data.check_name for check in checks} == {
            "loads", "changes_the_model", "training_is_sane",
        }  # fmt: skip
        assert ray.seen.devices == {"lora_adapter": {"0"}, "lora_adapter_checks": {"0"}}
        assert all(len(steps) <= 1 for steps in ray.seen.together)


@pytest.mark.slow
def test_steps_side_by_side_share_a_gpu_when_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and the baseline's answers in one run: the later starts before the earlier ends; untold: the cluster."""
    layout = make_artifacts(tmp_path / "artifacts")
    layout.eval_cases.parent.mkdir()
    cases = REPOSITORY / "artifacts" / "evaluation" / "po_eval_cases.jsonl"
    layout.eval_cases.write_text("".join(cases.read_text().splitlines(keepends=True)[:1]))
    resources = tiny_resources(layout, epochs=10.0) | {
        "decoding": {"mode": "free", "max_new_tokens": 4, "free_cases": 0}
    }
    root = str(layout.root)
    with deployment(tmp_path / "home", ONE_BOX, monkeypatch, PO_ARTIFACTS_ROOT=root, PO_GPUS="0.5") as ray:
        ray.instance.event_log_storage.set_concurrency_slots(POOL, steps_at_once(1))
        run = ray.wait_for(ray.materialize("lora_adapter", "baseline_report", resources=resources))
        assert run.status == dg.DagsterRunStatus.SUCCESS, ray.said(run.run_id)
        pair = ("baseline_report", "lora_adapter")
        times = ray.instance.get_run_step_stats(run.run_id, list(pair))
        assert max(step.start_time for step in times) < min(step.end_time for step in times)
        assert {step: ray.seen.devices[step] for step in pair} == {step: {"0"} for step in pair}


@pytest.mark.parametrize(
    ("gpus", "share", "steps"),
    [(0, "1", 1), (4, "1", 4), (1, "0.5", 2), (2, "0.4", 4), (3, "0.1", 30), (2, "0.75", 2), (4, "0", 1)],
)
def test_the_pool_holds_as_many_steps_as_the_gpus(
    monkeypatch: pytest.MonkeyPatch, gpus: int, share: str, steps: int
) -> None:
    """Each GPU by itself: what is left of two GPUs is no third one."""
    monkeypatch.setenv("PO_GPUS", share)
    assert steps_at_once(gpus) == steps


@pytest.mark.slow
def test_a_run_that_wants_a_gpu_fails_at_once_where_the_cluster_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence with the ways out before any step, and no retry."""
    layout = make_artifacts(tmp_path / "artifacts")
    root = str(layout.root)
    resources = tiny_resources(layout, epochs=2.0)
    with deployment(tmp_path / "home", ONE_BOX, monkeypatch, gpus=0, PO_ARTIFACTS_ROOT=root) as ray:
        refused = ray.wait_for(ray.materialize("lora_adapter", resources=resources))
        assert refused.status == dg.DagsterRunStatus.FAILURE
        (failure,) = ray.events(refused.run_id, dg.DagsterEventType.RUN_FAILURE)
        said = str(failure.event_specific_data.error)
        assert "lora_adapter, lora_adapter_checks ask(s) for a GPU, and the Ray cluster has 1 node without any." in said
        assert "PO_GPUS=0" in said
        assert ray.events(refused.run_id, dg.DagsterEventType.STEP_WORKER_STARTING) == []
        assert not ray.will_be_retried(refused.run_id)


@pytest.mark.slow
def test_ui_ray_starts_both_and_ends_both(tmp_path: Path) -> None:
    """As `make ui-ray`, with a GPU that Ray is told of, for two steps; Ctrl-C leaves no process behind.

    Nor the process of a job under way, which would hold the artifact root and wait for a Ray that is gone.
    """
    shutil.copy(ONE_BOX, tmp_path)
    port = free_port()
    mark = str(tmp_path)
    command = [sys.executable, "-m", "po_assets.cli", "ui-ray", "--port", str(port)]
    # An empty artifact root: the sensor of this UI finds nothing to run.
    environment = {**os.environ, "DAGSTER_HOME": mark, "PO_TEST_DEPLOYMENT": mark, "PO_ARTIFACTS_ROOT": mark}
    environment |= {"RAY_OVERRIDE_RESOURCES": '{"GPU": 1}', "PO_GPUS": "0.5"}
    with (tmp_path / "ui.log").open("wb") as log:
        ui = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log)

    def answers() -> bool:
        assert ui.poll() is None, (tmp_path / "ui.log").read_text()
        with contextlib.suppress(OSError):
            return b"dagster_version" in urllib.request.urlopen(f"http://127.0.0.1:{port}/server_info").read()
        return False

    try:
        wait_until(answers, 240, "the Dagster UI")
        names = {process.name() for process in marked_processes(mark)}
        assert {"raylet", "gcs_server"} <= names
        listening = [c.laddr.ip for p in marked_processes(mark) for c in p.net_connections() if c.status == "LISTEN"]
        assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
        with dg.DagsterInstance.from_config(mark) as instance:
            assert instance.event_log_storage.get_concurrency_info(POOL).slot_count == 2
        (url,) = re.findall(r"Ray is up with 1 GPU: (http://[\d.]+:\d+)", (tmp_path / "ui.log").read_text())
        started = tmp_path / "started"
        code = f"import pathlib, time; pathlib.Path({str(started)!r}).touch(); time.sleep(600)"
        JobSubmissionClient(url).submit_job(entrypoint=f'{sys.executable} -c "{code}"')
        wait_until(started.exists, 120, "the job")
        assert any("time.sleep(600)" in " ".join(process.cmdline()) for process in marked_processes(mark))
    finally:
        ui.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            ui.wait(180)
        left = marked_processes(mark)
        for process in left:
            process.kill()
    assert left == []


def marked_processes(mark: str) -> list[psutil.Process]:
    """Living processes whose environment carries the mark."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("PO_TEST_DEPLOYMENT") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


NODE = {"CPU": 8.0, "memory": 1e10}
GPU = {"dagster-ray/config": '{"num_gpus": 1}'}


@pytest.mark.parametrize(
    ("steps", "nodes", "reason"),
    [
        ({"a": {}}, [NODE], None),
        ({"a": GPU}, [NODE, NODE | {"GPU": 4.0}], None),
        ({"a": {"dagster-ray/config": '{"num_gpus": 0.5}'}}, [NODE | {"GPU": 1.0}], None),
        ({"b": GPU, "a": GPU, "c": {}}, [NODE, NODE], "a, b ask(s) for a GPU, and the Ray cluster has 2 nodes without"),
        ({"a": GPU}, [], "the Ray cluster has 0 nodes"),
        ({"a": {"dagster-ray/config": '{"num_cpus": 9}'}}, [NODE], "a ask(s) for more CPUs than any"),
    ],
)
def test_needs_that_no_node_meets_are_told(steps: dict[str, Any], nodes: list[Any], reason: str | None) -> None:
    """Each step must fit on one node; nodes do not add up."""
    said = unmet_needs(steps, nodes)
    assert said is None if reason is None else said is not None and reason in said


@pytest.mark.parametrize("settings", [ONE_BOX, ONE_BOX.parent / "cluster" / "dagster.yaml"], ids=["box", "cluster"])
def test_runs_are_launched_with_the_settings_that_steps_get(settings: Path) -> None:
    """The list stands in dagster.yaml and in the code; and nothing in it can be mistaken for a step's GPU."""
    launcher = yaml.safe_load(settings.read_text())["run_launcher"]["config"]["ray"]
    assert launcher["env_vars"] == ["PO_EXECUTOR=ray", *PASSED_ON]
    assert set(launcher) == {"address", "env_vars"}


def test_whatever_the_environment_sets_for_a_step_reaches_it() -> None:
    """Every variable that the code names; keys are the nodes' own, messages are sent where the daemon is."""
    named = {
        name
        for file in (REPOSITORY / "po_assets").rglob("*.py")
        for name in re.findall(r'"(PO_[A-Z_]+)"', file.read_text())
    }
    elsewhere = {"PO_EXECUTOR", "PO_EVAL_KEY", "PO_SERVE_KEY", "PO_NOTIFY_WEBHOOK_URL", "PO_NOTIFY_WARNINGS"}
    assert named - elsewhere == set(PASSED_ON)


def test_a_ui_whose_port_is_taken_starts_no_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dagster's own start goes on without a page, and its daemons launch runs."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setattr(ray, "local_head", pytest.fail)
    with listen("127.0.0.1", 0) as taken, pytest.raises(UserError, match="Take another port with --port"):
        ray.ui_on_ray(taken.getsockname()[1])
