"""Steps as Ray jobs, through dagster-ray, and `po-assets ui-ray`: Ray on this machine alone, with the Dagster UI on it.

What the project adds to dagster-ray's executor: a step is told the project's settings, sees no GPU but its own, and a
run whose steps no node of the cluster can ever hold fails at once, where Ray would let it wait.
"""

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
from dagster._core.executor.step_delegating import StepDelegatingExecutor, StepHandlerContext
from dagster_ray import ray_executor
from dagster_ray.configs import RayExecutionConfig
from dagster_ray.core.executor import RayStepHandler
from ray.job_submission import JobStatus, JobSubmissionClient
from ray.util.state import list_nodes

from po_assets.automation.executors import PreparedExecutor, one_run_per_root, prepared
from po_assets.automation.instance import check_history, opened_instance
from po_assets.dag.compute import EXECUTOR_VARIABLE, GPUS_VARIABLE, POOL, RAY_ON_LOOPBACK, gpus_per_step
from po_assets.errors import UserError
from po_assets.text import amount, say

AUTOSCALING_VARIABLE = "PO_RAY_AUTOSCALING"
DASHBOARD_VARIABLE = "PO_RAY_DASHBOARD"

PASSED_ON = (
    DASHBOARD_VARIABLE,
    AUTOSCALING_VARIABLE,
    "PO_ARTIFACTS_ROOT",
    "PO_SETTINGS",
    "PO_PROFILE",
    "PO_GPUS",
    "PO_NUM_WORKERS",
    "PO_TEACHER_BASE_URL",
    "PO_TEACHER_MODEL",
    "PO_TRACKING_URI",
)
"""Settings that a run gets from where it was launched (`deploy/ray`) and its steps from it, shown on Ray's dashboard.

Secrets are none of them: they are the nodes' own.
"""

# Ray shows a job that asks for GPUs exactly those, but one that asks for none all of them.
_NO_GPU = "CUDA_VISIBLE_DEVICES="
_START_SECONDS = 120
_STOP_SECONDS = 30


class _StepHandler(RayStepHandler):  # type: ignore[misc] # dagster-ray has no types
    """dagster-ray's handler; each step gets the run's settings, and those that say nothing of GPUs see none."""

    def __init__(self, given: RayStepHandler) -> None:
        super().__init__(**vars(given))  # it keeps what it was given under the same names
        self._settings = [*PASSED_ON, *given.env_vars]

    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        """Submit the step's Ray job."""
        (tags,) = step_handler_context.step_tags.values()
        hidden = [_NO_GPU] if RayExecutionConfig.from_tags(tags).num_gpus is None else []
        self.env_vars = [*self._settings, *hidden]
        yield from super().launch_step(step_handler_context)


@dg.executor(
    name="ray", config_schema=ray_executor.config_schema, requirements=dg.multiple_process_executor_requirements()
)
def _ray_step_executor(init_context: dg.InitExecutorContext) -> PreparedExecutor:
    """Each step as a Ray job, after a look at whether the cluster's nodes can hold the run's steps."""
    create = ray_executor.executor_creation_fn
    assert create is not None  # noqa: S101 - for the type checker
    inner = create(init_context)
    assert isinstance(inner, StepDelegatingExecutor)  # noqa: S101
    handler: RayStepHandler = inner._step_handler  # noqa: SLF001 - dagster-ray keeps it there
    inner._step_handler = _StepHandler(handler)  # noqa: SLF001

    @contextlib.contextmanager
    def fitting_nodes(_plan_context: Any, execution_plan: Any) -> Iterator[None]:
        steps = {key: execution_plan.get_step_by_key(key).tags for key in execution_plan.step_keys_to_execute}
        nodes = [] if os.environ.get(AUTOSCALING_VARIABLE) else node_totals(handler.client.get_address())
        if nodes and (reason := unmet_needs(steps, nodes)):
            raise UserError(reason)
        yield

    return PreparedExecutor(inner, fitting_nodes)


ray_step_executor = prepared(_ray_step_executor, one_run_per_root).configured({"ray": {}}, name="ray")


def node_totals(dashboard: str) -> list[Mapping[str, float]]:
    """What each living node of the cluster has (`CPU`, `GPU`, …), used or not; `dashboard` is the head's URL."""
    return [node.resources_total for node in list_nodes(address=dashboard) if node.state == "ALIVE"]


def unmet_needs(steps: Mapping[str, Mapping[str, str]], nodes: Sequence[Mapping[str, float]]) -> str | None:
    """Why steps, given with their tags, fit on no node; None when all do."""
    most = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in ("CPU", "GPU")}
    without: dict[str, list[str]] = {"CPU": [], "GPU": []}
    for key, tags in sorted(steps.items()):
        needs = RayExecutionConfig.from_tags(tags)
        for name, need in (("GPU", needs.num_gpus), ("CPU", needs.num_cpus)):
            if (need or 0) > most[name]:
                without[name].append(key)
    if without["GPU"]:
        return (
            f"{', '.join(without['GPU'])} ask(s) for a GPU, and the Ray cluster has {amount(len(nodes), 'node')} "
            f"without any. Start Ray where there is one, or set {GPUS_VARIABLE}=0 to compute on CPUs (profile "
            f"'embedded' only). If GPU nodes are added on demand, set {AUTOSCALING_VARIABLE}=1."
        )
    if without["CPU"]:
        return (
            f"{', '.join(without['CPU'])} ask(s) for more CPUs than any of the cluster's {amount(len(nodes), 'node')} "
            f"has ({most['CPU']:g}). Start Ray with more, or let the step ask for fewer in po_assets/dag/compute.py."
        )
    return None


@contextlib.contextmanager
def local_head(*, gpus: int | None = None, cpus: int | None = None) -> Iterator[str]:
    """A Ray head with dashboard on free ports of 127.0.0.1; yields the dashboard's URL.

    `gpus` and `cpus` are what Ray is told to have; None lets it count. GPUs that are not there can be given too: Ray
    then hands out their numbers, which is how GPU routing is tested without one. Its processes take this process's
    environment and end with the block.
    """
    # Sockets lie in this folder, and their paths must be short.
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    dashboard, agent, client = (_free_port() for _ in range(3))
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += ["--node-ip-address=127.0.0.1", "--port=0", f"--ray-client-server-port={client}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--include-dashboard=true"]
    command += [f"--dashboard-agent-listen-port={agent}", f"--temp-dir={folder}"]
    command += [f"--num-gpus={gpus}"] if gpus is not None else []
    command += [f"--num-cpus={cpus}"] if cpus is not None else []
    # Dagster starts runs and steps by the name `dagster`.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    environment = {**os.environ, **RAY_ON_LOOPBACK, "PATH": path}
    output = folder / "start.log"
    with output.open("wb") as log:
        head = subprocess.Popen(  # noqa: S603 - our own words
            command, stdout=log, stderr=log, start_new_session=True, env=environment
        )
    url = f"http://127.0.0.1:{dashboard}"
    try:
        _wait_until_ready(head, url, output)
        yield url
    finally:
        with contextlib.suppress(Exception):  # it may not have started, or died
            _stop_jobs(url)
        started = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
        head.send_signal(signal.SIGTERM)  # the head ends the processes it started
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(_STOP_SECONDS)
        head.kill()
        for process in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _stop_jobs(url: str) -> None:
    """Stop every job: an ending head waits for it, then leaves its process, which would hold its locks for ever."""
    client = JobSubmissionClient(url)

    def under_way() -> list[str]:
        jobs = client.list_jobs()
        return [job.submission_id for job in jobs if job.submission_id and not JobStatus(job.status).is_terminal()]

    for job in under_way():
        client.stop_job(job)
    end = time.monotonic() + _STOP_SECONDS
    while under_way() and time.monotonic() < end:
        time.sleep(0.2)


def _wait_until_ready(head: subprocess.Popen[bytes], url: str, output: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    problem: Exception | None = None
    while time.monotonic() < deadline and head.poll() is None:
        try:
            if node_totals(url):
                return
        except Exception as error:  # noqa: BLE001 - until it listens, each attempt fails in a way of its own
            problem = error
        time.sleep(0.5)
    said = "\n".join(output.read_text(errors="replace").strip().splitlines()[-10:])
    raise UserError(f"Ray did not start within {_START_SECONDS} s ({problem}); it said:\n{said}") from problem


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def steps_at_once(gpus: int) -> int:
    """How many steps that ask for GPUs fit on this machine's; Ray never puts a share of one step on two GPUs."""
    share = gpus_per_step()
    return max(1, gpus * int(1 / share)) if share else 1


def add_ui_ray(parser: argparse.ArgumentParser) -> None:
    """The command `po-assets ui-ray`."""
    parser.add_argument("--port", type=int, default=3000, help="of the UI, on 127.0.0.1 (default: %(default)s)")
    parser.set_defaults(handle=lambda options: ui_on_ray(options.port))


def ui_on_ray(port: int) -> int:
    """Start Ray, then the Dagster UI on it; both end together."""
    from po_assets.serving.server import free_port

    check_history()
    port = free_port(port)  # as `po-assets ui` does
    # A shell's background job starts with SIGINT ignored, and so would the UI, which then could not be ended.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with local_head() as url:
        gpus = int(sum(node.get("GPU", 0) for node in node_totals(url)))
        os.environ |= {DASHBOARD_VARIABLE: url, EXECUTOR_VARIABLE: "ray"}
        os.environ.setdefault(GPUS_VARIABLE, "1" if gpus else "0")
        with opened_instance() as instance:
            instance.event_log_storage.set_concurrency_slots(POOL, steps_at_once(gpus))
        say(
            f"Ray is up with {amount(gpus, 'GPU')}: {url}. The Dagster UI follows on http://127.0.0.1:{port}; Ctrl-C "
            "ends both."
        )
        command = ["-m", "dagster", "dev", "--workspace", "workspace.yaml", "--host", "127.0.0.1", "--port", str(port)]
        ui = subprocess.Popen([sys.executable, *command], start_new_session=True)  # noqa: S603
        # Signals reach this process alone: the UI is told, and Ray ends after it.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: ui.send_signal(signal.SIGINT))
        return ui.wait()
