"""The one place that says what GPU steps ask for, and that every step that loads a model, and no other, asks."""

import json
from typing import Any

import pytest

from po_assets.automation.executors import step_executor
from po_assets.dag.compute import POOL, default_num_workers, gpus_per_step, op_tags
from po_assets.definitions import defs
from po_assets.errors import UserError

GPU_STEPS = {"lora_adapter", "baseline_report", "eval_report", "lora_adapter_checks", "exported_student_checks"}


def test_the_steps_that_load_a_model_ask_for_one_gpu_and_no_other_step_does() -> None:
    """In the job as in a single Materialize: the needs stand on the steps."""
    job = defs.resolve_implicit_global_asset_job_def()
    tags = {node.name: dict(job.graph.node_named(node.name).definition.tags) for node in job.graph.nodes}
    ray = {step: json.loads(t["dagster-ray/config"]) for step, t in tags.items() if "dagster-ray/config" in t}
    kubernetes = {step: json.loads(t["dagster-k8s/config"]) for step, t in tags.items() if "dagster-k8s/config" in t}
    assert ray == {step: {"num_gpus": 1.0} for step in GPU_STEPS}
    assert set(kubernetes) == GPU_STEPS
    for config in kubernetes.values():
        assert config["container_config"]["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    pools = {node.name for node in job.graph.nodes if POOL in job.graph.node_named(node.name).definition.pools}
    assert pools == GPU_STEPS


@pytest.mark.parametrize(
    ("gpus", "workers", "ray", "limit"),
    [
        ("", 1, {"num_gpus": 1.0}, "1"),
        ("0.5", 1, {"num_gpus": 0.5}, "1"),
        ("1", 4, {"num_gpus": 0}, "4"),
        ("0", 4, {}, None),
    ],
)
def test_what_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, gpus: str, workers: int, ray: dict[str, Any], limit: str | None
) -> None:
    """Ray Train's workers ask for their own GPUs; on Kubernetes they all live in the step's pod."""
    monkeypatch.setenv("PO_GPUS", gpus)
    tags = op_tags(workers)
    assert tags["dagster-ray/config"] == ray
    kubernetes = tags.get("dagster-k8s/config")
    assert (kubernetes and kubernetes["container_config"]["resources"]["limits"]["nvidia.com/gpu"]) == limit


def test_without_gpus_a_step_asks_for_the_machine_s_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that PyTorch gets their threads, and two such steps do not share them."""
    monkeypatch.setenv("PO_GPUS", "0")
    (tag,) = op_tags().values()
    assert tag["num_cpus"] >= 1


@pytest.mark.parametrize("value", ["two", "-1", "2", "nan"])
def test_impossible_numbers_of_gpus_are_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """Quoting the value, with the ways out."""
    monkeypatch.setenv("PO_GPUS", value)
    with pytest.raises(UserError, match=f"PO_GPUS is '{value}'. Use 1 .* PO_NUM_WORKERS"):
        gpus_per_step()


@pytest.mark.parametrize("value", ["0", "two", "1.5", "-1"])
def test_impossible_numbers_of_workers_are_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """Quoting the value."""
    monkeypatch.setenv("PO_NUM_WORKERS", value)
    with pytest.raises(UserError, match=f"PO_NUM_WORKERS is '{value}'"):
        default_num_workers()


@pytest.mark.parametrize(("executor", "shown"), [("", "in_process"), ("ray", "ray"), ("kubernetes", "k8s")])
def test_the_deployment_chooses_the_executor(monkeypatch: pytest.MonkeyPatch, executor: str, shown: str) -> None:
    """One variable; `test_run` has what is said of a name that nobody knows."""
    monkeypatch.setenv("PO_EXECUTOR", executor)
    assert step_executor().name == shown
