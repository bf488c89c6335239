"""Ray on this machine alone: a head bound to loopback that ends with the process that started it.

`po-assets ui-ray` is `make ui-ray`: Ray with the machine's GPUs, then the Dagster UI on it.
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
from collections.abc import Iterator
from pathlib import Path

import psutil

from po_assets.dag.compute import EXECUTOR_VARIABLE, GPUS_VARIABLE, POOL, RAY_ON_LOOPBACK, gpus_per_step
from po_assets.errors import UserError

_START_SECONDS = 120
_STOP_SECONDS = 30


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
    from ray.job_submission import JobStatus, JobSubmissionClient

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
    from po_assets.automation.ray_steps import node_totals

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
    import dagster as dg

    from po_assets.automation.ray_steps import DASHBOARD_VARIABLE, node_totals

    # A shell's background job starts with SIGINT ignored, and so would the UI, which then could not be ended.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with local_head() as url:
        gpus = int(sum(node.get("GPU", 0) for node in node_totals(url)))
        os.environ |= {DASHBOARD_VARIABLE: url, EXECUTOR_VARIABLE: "ray"}
        os.environ.setdefault(GPUS_VARIABLE, "1" if gpus else "0")
        with dg.DagsterInstance.get() as instance:
            instance.event_log_storage.set_concurrency_slots(POOL, steps_at_once(gpus))
        _say(
            f"Ray is up with {gpus} GPU(s): {url}. The Dagster UI follows on http://127.0.0.1:{port}; Ctrl-C ends both."
        )
        command = ["-m", "dagster", "dev", "--workspace", "workspace.yaml", "--host", "127.0.0.1", "--port", str(port)]
        ui = subprocess.Popen([sys.executable, *command], start_new_session=True)  # noqa: S603
        # Signals reach this process alone: the UI is told, and Ray ends after it.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: ui.send_signal(signal.SIGINT))
        return ui.wait()


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - a command line speaks on standard output
