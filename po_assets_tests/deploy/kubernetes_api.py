"""A stand-in for a Kubernetes cluster: takes Jobs over the API and starts each one's command as a process here.

Enough of the API for dagster-k8s to launch and watch runs and steps. Like a kubelet it gives a container the environment
that its Job spells out, secrets resolved, and nothing else. It schedules nothing: what a Job asks of a node is for the
test to look at.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml


class Cluster:
    """The Jobs that were created, and their processes."""

    def __init__(self, folder: Path, secrets: Mapping[str, Mapping[str, str]]) -> None:
        self._folder, self._secrets = folder, secrets
        self.jobs: dict[str, dict[str, Any]] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.doomed: set[str] = set()
        """Steps whose next container dies as it starts."""

    @property
    def kubeconfig(self) -> Path:
        """What clients find the API by."""
        return self._folder / "kubeconfig"

    def create(self, job: dict[str, Any]) -> dict[str, Any]:
        """Start the Job's container."""
        name = job["metadata"]["name"]
        (container,) = job["spec"]["template"]["spec"]["containers"]
        with (self._folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                container["args"], env=self._environment(container), stdout=log, stderr=subprocess.STDOUT
            )
        step = job["metadata"]["labels"].get("dagster/op")
        if step in self.doomed:
            self.processes[name].kill()
            self.doomed.remove(step)
        self.jobs[name] = job
        return job

    def status(self, name: str) -> dict[str, Any]:
        """The Job with its status."""
        code = self.processes[name].poll()
        state = {"active": 1} if code is None else ({"succeeded": 1} if code == 0 else {"failed": 1})
        return {**self.jobs[name], "status": state}

    def logs(self) -> str:
        """The end of what each container printed."""
        return "\n".join(f"== {p.name}\n{p.read_text(errors='replace')[-1500:]}" for p in self._folder.glob("*.log"))

    def stop(self) -> None:
        """End what still runs."""
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()

    def _environment(self, container: dict[str, Any]) -> dict[str, str]:
        image = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(self._folder)}
        for source in container.get("envFrom") or []:
            image |= self._secrets[source["secretRef"]["name"]]
        for variable in container.get("env") or []:
            if "valueFrom" in variable:
                reference = variable["valueFrom"]["secretKeyRef"]
                image[variable["name"]] = self._secrets[reference["name"]][reference["key"]]
            else:
                image[variable["name"]] = variable.get("value", "")
        return image


@contextmanager
def stand_in_cluster(folder: Path, secrets: Mapping[str, Mapping[str, str]]) -> Iterator[Cluster]:
    """Serve the API on loopback; `secrets` are those that exist, by name and key."""
    folder.mkdir()
    cluster = Cluster(folder, secrets)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                self._answer(201, cluster.create(job))
            except KeyError as missing:
                self._answer(422, {"kind": "Status", "message": f"no secret or key {missing}"})

        def do_GET(self) -> None:
            *_, name, status = self.path.partition("?")[0].split("/")
            known = status == "status" and name in cluster.jobs
            self._answer(200 if known else 404, cluster.status(name) if known else {"kind": "Status"})

        def _answer(self, code: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
        "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "me", "user": {}}],
    }
    cluster.kubeconfig.write_text(yaml.safe_dump(config))
    try:
        yield cluster
    finally:
        cluster.stop()
        server.shutdown()
        server.server_close()
