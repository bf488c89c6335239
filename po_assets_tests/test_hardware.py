"""GPUs: demanded where there is none, by runs without the command line's preflight (UI, sensor); used where there is one."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import torch

from po_assets.definitions import defs
from po_assets.model import BaseModel, best_device, require_hardware
from po_assets.text import Progress
from po_assets.training.settings import shown_defaults
from po_assets.training.student import make_student
from po_assets_tests.training.tiny_training import PAIRS, make_artifacts, tiny_recipe


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
    require_hardware(BaseModel(profile="embedded").resolved())
    assert best_device() == device


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU")
def test_training_computes_on_the_gpu(tmp_path: Path) -> None:
    """Through the model's own kernels."""
    layout = make_artifacts(tmp_path)
    student = make_student(layout, PAIRS, tiny_recipe(tmp_path / "tiny"), Progress(lambda _line: None))
    assert "plain path (the model is on a GPU" in student.manifest.extra["engine"]
