"""Dagster as a user runs it, in processes of its own: `dagster dev` or the webserver alone, and questions over GraphQL."""

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import psutil

from po_assets_tests.automation.workplace import REPOSITORY, Workplace
from po_assets_tests.processes import free_port

LOCATION = "po_assets_tests.automation.tiny_location"
START_SECONDS = 300  # on a machine that is busy with something else

_RUNS = "{runsOrError{... on Runs{results{runId status jobName parentRunId tags{key value}}}}}"
_CHECKS = """query($key: AssetKeyInput!) {assetNodeOrError(assetKey: $key){... on AssetNode{assetChecksOrError{
... on AssetChecks{checks{name blocking executionForLatestMaterialization{status runId evaluation{
success severity description metadataEntries{label}}}}}}}}}"""
_REEXECUTE = """mutation($id: String!) {launchRunReexecution(reexecutionParams:
{parentRunId: $id, strategy: FROM_FAILURE}){__typename ... on LaunchRunSuccess{run{runId}} ... on PythonError{message}}}"""
_LAUNCH = """mutation($p: ExecutionParams!) {launchRun(executionParams: $p){__typename
... on LaunchRunSuccess{run{runId}} ... on PythonError{message} ... on RunConfigValidationInvalid{errors{message}}}}"""
_STEPS = "query($id: ID!) {runOrError(runId: $id){... on Run{stepStats{stepKey}}}}"
_STALE = "{assetNodes{assetKey{path} staleStatus staleCauses{category reason}}}"
_TICKS = """query($s: SensorSelector!) {sensorOrError(sensorSelector: $s){... on Sensor{sensorState{ticks(limit: 20){
timestamp status skipReason error{message}}}}}}"""


def wait_until(
    what: Callable[[], Any], seconds: float, name: str, said: Callable[[], str] = str, *, every: float = 0.2
) -> Any:
    """The first true value; fails with what was `said` meanwhile when there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(every)
    raise AssertionError(f"waited {seconds:.0f} s in vain for {name}\n{said()}")


@contextmanager
def serving(
    command: Sequence[str | Path], log: Path, answers: Callable[[], Any], **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process of its own, from its first answer to the end of the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, **options)

    def ready() -> Any:
        assert process.poll() is None, f"the server ended:\n{log.read_text(errors='replace')}"
        return answers()

    try:
        wait_until(ready, START_SECONDS, "the server", lambda: log.read_text(errors="replace"))
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server as Ctrl-C does, and by force whatever of its processes is left."""
    family = [process, *psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
    process.send_signal(signal.SIGINT)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
    for member in family:
        if isinstance(member, psutil.Process) and member.is_running():
            member.kill()


class Server:
    """A running webserver."""

    process: subprocess.Popen[bytes]

    def __init__(self, url: str, log: Path) -> None:
        self.url, self._log = url, log

    def ask(self, query: str, **variables: Any) -> Any:
        """The `data` of a GraphQL answer."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            content = json.load(answer)
        assert "errors" not in content, content
        return content["data"]

    def runs(self) -> list[dict[str, Any]]:
        """All runs, the oldest first, tags as a dict."""
        found = self.ask(_RUNS)["runsOrError"]["results"]
        return [{**run, "tags": {tag["key"]: tag["value"] for tag in run["tags"]}} for run in reversed(found)]

    def checks(self, asset: str) -> dict[str, dict[str, Any]]:
        """The checks of an asset by name, with their last evaluation (None where there is none)."""
        node = self.ask(_CHECKS, key={"path": [asset]})["assetNodeOrError"]
        checks = {check["name"]: check for check in node["assetChecksOrError"]["checks"]}
        return {
            name: (check["executionForLatestMaterialization"] or {}).get("evaluation") for name, check in checks.items()
        }

    def stale(self) -> dict[str, str]:
        """Dagster's own word for each asset: FRESH, STALE or MISSING."""
        return {node["assetKey"]["path"][-1]: node["staleStatus"] for node in self.ask(_STALE)["assetNodes"]}

    def reexecute_from_failure(self, run_id: str) -> None:
        """What the button of the run's page does."""
        answer = self.ask(_REEXECUTE, id=run_id)["launchRunReexecution"]
        assert answer["__typename"] == "LaunchRunSuccess", answer

    def launch(self, job: str, assets: Sequence[str] = ()) -> str:
        """What the button Materialize does, of a job or of selected assets; the run's id."""
        return _launched(self.ask(_LAUNCH, p=_materialize(LOCATION, job, assets)))

    def steps(self, run_id: str) -> set[str]:
        """The steps that a run started."""
        return {step["stepKey"] for step in self.ask(_STEPS, id=run_id)["runOrError"]["stepStats"]}

    def ticks(self, sensor: str) -> list[dict[str, Any]]:
        """The last ticks of a sensor, the newest first."""
        selector = {"repositoryName": "__repository__", "repositoryLocationName": LOCATION, "sensorName": sensor}
        return self.ask(_TICKS, s=selector)["sensorOrError"]["sensorState"]["ticks"]

    def wait(self, what: str, condition: Callable[[], Any], seconds: float = 120) -> Any:
        """What `condition` gives as soon as it is true; fails after `seconds`, showing the server's last words."""

        def looked() -> Any:
            assert self.process.poll() is None, f"the server ended:\n{self.log()}"
            return condition()

        return wait_until(looked, seconds, what, lambda: f"runs: {self.runs()}\n{self.log()}", every=1)

    def wait_for_run(self, number: int, seconds: float = 180) -> dict[str, Any]:
        """The run of this number (from 1) when it has ended."""

        def ended() -> dict[str, Any] | None:
            runs = self.runs()
            over = len(runs) >= number and runs[number - 1]["status"] in ("SUCCESS", "FAILURE", "CANCELED")
            return runs[number - 1] if over else None

        return self.wait(f"run {number} to end", ended, seconds)

    def log(self) -> str:
        """The end of what the processes printed."""
        return self._log.read_text(errors="replace")[-6000:]


def _materialize(location: str, job: str, assets: Sequence[str], resources: Mapping[str, Any] | None = None) -> Any:
    selector: dict[str, Any] = {"repositoryLocationName": location, "repositoryName": "__repository__", "jobName": job}
    selector |= {"assetSelection": [{"path": [asset]} for asset in assets]} if assets else {}
    config = {"resources": {name: {"config": settings} for name, settings in (resources or {}).items()}}
    return {"selector": selector, "runConfigData": config, "mode": "default"}


def _launched(answer: Any) -> str:
    launched = answer["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", answer
    return str(launched["run"]["runId"])


def materialize(
    instance: dg.DagsterInstance,
    target: Any,
    location: str,
    job: str,
    *,
    assets: Sequence[str] = (),
    resources: Mapping[str, Any] | None = None,
) -> str:
    """Press Materialize in a webserver of this process, of a workspace `target` with one location; the run's id."""
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster_webserver.app import create_app_from_workspace_process_context
    from starlette.testclient import TestClient

    with WorkspaceProcessContext(instance, target) as workspace:
        client = TestClient(create_app_from_workspace_process_context(workspace))
        asked = {"query": _LAUNCH, "variables": {"p": _materialize(location, job, assets, resources)}}
        return _launched(client.post("/graphql", json=asked).json()["data"])


@contextmanager
def dagster_dev(place: Workplace, **variables: str) -> Iterator[Server]:
    """`make ui` on a free port: webserver, daemon and code server."""
    with _running(place, ["-m", "dagster", "dev"], **variables) as server:
        yield server


@contextmanager
def webserver(place: Workplace, **variables: str) -> Iterator[Server]:
    """The webserver alone: nothing is launched by it."""
    with _running(place, ["-m", "dagster_webserver"], **variables) as server:
        yield server


@contextmanager
def _running(place: Workplace, command: list[str], **variables: str) -> Iterator[Server]:
    port = free_port()
    log = place.folder / f"server-{port}.log"
    arguments = [sys.executable, *command, "-m", LOCATION, "--host", "127.0.0.1", "--port", str(port)]
    server, environment = Server(f"http://127.0.0.1:{port}", log), place.environment(**variables)
    with serving(arguments, log, lambda: _answers(server), cwd=REPOSITORY, env=environment) as server.process:
        yield server


def _answers(server: Server) -> bool:
    try:
        found = server.ask("{repositoriesOrError{... on RepositoryConnection{nodes{name}}}}")
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
    return bool(found["repositoriesOrError"].get("nodes"))
