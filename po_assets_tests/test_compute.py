"""GPUs: what each step asks for, refused where they are wanted and there is none, used where there is one."""

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import torch

from po_assets.automation.executors import step_executor
from po_assets.dag.compute import POOL, default_num_workers, gpus_per_step, op_tags
from po_assets.definitions import defs
from po_assets.errors import UserError
from po_assets.model import BaseModel, best_device, require_hardware
from po_assets.text import Progress
from po_assets.training.settings import shown_defaults
from po_assets.training.student import make_student
from po_assets_tests.training.tiny_training import PAIRS, make_artifacts, tiny_recipe

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


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        *(("PO_GPUS", value, r". Use 1 .* PO_NUM_WORKERS") for value in ("two", "-1", "2", "nan")),
        *(("PO_NUM_WORKERS", value, "") for value in ("0", "two", "1.5", "-1")),
    ],
)
def test_impossible_numbers_are_refused(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str) -> None:
    """Quoting the value, with the ways out."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=f"{variable} is '{value}'{said}"):
        gpus_per_step() if variable == "PO_GPUS" else default_num_workers()


@pytest.mark.parametrize(("executor", "shown"), [("", "in_process"), ("ray", "ray"), ("kubernetes", "k8s")])
def test_the_deployment_chooses_the_executor(monkeypatch: pytest.MonkeyPatch, executor: str, shown: str) -> None:
    """One variable; `test_run` has what is said of a name that nobody knows."""
    monkeypatch.setenv("PO_EXECUTOR", executor)
    assert step_executor().name == shown


def whole_job() -> dg.JobDefinition:
    """Of the code location, with its executor."""
    return defs.resolve_job_def("product_owner_student")


@pytest.mark.parametrize("asset", ["lora_adapter", "baseline_report", "eval_report"])
def test_each_asset_refuses_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asset: str) -> None:
    """With one sentence, once, and without a file written or a model looked for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    layout = make_artifacts(tmp_path / "artifacts")
    case = '{"case_id": "EVAL-01", "tier": "simple", "concept": "C", "requirements_yaml": "title: R", '
    case += '"reference_vision_yaml": "a: 1", "reference_review_yaml": "status: aligned", "status": "aligned"}\n'
    layout.eval_cases.parent.mkdir(parents=True)
    layout.eval_cases.write_text(case)
    layout.baseline_answers.write_text("")
    layout.adapter.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    result = defs.resolve_implicit_global_asset_job_def().execute_in_process(
        asset_selection=[dg.AssetKey(asset)],
        run_config={
            "resources": {
                "artifacts": {"config": {"root": str(layout.root)}},
                "base_model": {"config": {"profile": "paper"}},
                "recipe": {"config": shown_defaults("paper")},
            }
        },
        raise_on_error=False,
    )
    (failure,) = result.get_step_failure_events()
    description = failure.step_failure_data.user_failure_data.description
    assert description.startswith("The profile 'paper' needs a CUDA GPU")
    assert "PO_PROFILE=embedded" in description
    assert not [event for event in result.all_events if event.event_type_value == "STEP_UP_FOR_RETRY"]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_whole_run_refuses_before_its_first_step(tmp_path: Path) -> None:
    """As UI and sensor launch it: no row is read, no model looked for; a run without the model's steps is let through."""
    root = tmp_path / "artifacts"
    (root / "incoming").mkdir(parents=True)
    (root / "incoming" / "rows.jsonl").write_text("{}\n")
    config = {"resources": {"artifacts": {"config": {"root": str(root)}}}}
    config["resources"]["base_model"] = {"config": {"profile": "paper"}}
    with dg.instance_for_test() as instance:

        def run(**selection: Any) -> dg.JobExecutionResult:
            job = dg.reconstructable(whole_job)
            return dg.execute_job(job, instance=instance, run_config=config, raise_on_error=False, **selection)

        refused = run()
        assert not refused.success
        assert not (root / "distillation").exists()
        (failure,) = [event for event in refused.all_events if event.is_run_failure]
        assert "The profile 'paper' needs a CUDA GPU" in str(failure.event_specific_data)
        assert instance.get_run_by_id(refused.run_id).tags["dagster/max_retries"] == "0"
        assert run(asset_selection=[dg.AssetKey("raw_teacher")]).success


@pytest.mark.parametrize(("gpu", "device"), [(True, "cuda"), (False, "cpu")])
def test_the_embedded_profile_takes_what_there_is(monkeypatch: pytest.MonkeyPatch, gpu: bool, device: str) -> None:
    """It refuses nowhere, and loads its model onto a GPU where PyTorch sees one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    require_hardware(BaseModel(profile="embedded").resolved())
    assert best_device() == device


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU")
def test_training_computes_on_the_gpu(tmp_path: Path) -> None:
    """Through the model's own kernels."""
    layout = make_artifacts(tmp_path)
    student = make_student(layout, PAIRS, tiny_recipe(tmp_path / "tiny"), Progress(lambda _line: None))
    assert "plain path (the model is on a GPU" in student.manifest.extra["engine"]
