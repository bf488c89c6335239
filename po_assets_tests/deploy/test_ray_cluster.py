"""The settings of a cluster: the whole graph as Ray jobs, the instance in PostgreSQL."""

import json
from pathlib import Path

import dagster as dg
import pytest

from po_assets_tests.automation.tiny_definitions import RECIPE, SELECTION
from po_assets_tests.automation.workplace import REPOSITORY, good_rows, make_workplace
from po_assets_tests.deploy.postgres_server import postgres_server
from po_assets_tests.deploy.ray_deployment import deployment

CLUSTER = REPOSITORY / "deploy" / "ray" / "cluster" / "dagster.yaml"
ASSETS = {"raw_teacher", "normalized_teacher", "eval_cases", "supervised_dataset"}
ASSETS |= {"lora_adapter", "baseline_report", "eval_report"}
GPU_STEPS = {"lora_adapter", "lora_adapter_checks", "baseline_report", "eval_report"}


@pytest.mark.slow
def test_the_whole_graph_runs_as_ray_jobs_on_postgresql(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From landed rows to the gate, with a tiny model: which fails it, for good and in one run."""
    place = make_workplace(tmp_path)
    root = place.root
    place.land("good", *good_rows(), age=-3600)  # as if it were being written, so that the sensor starts no run
    resources = {
        "selection": SELECTION,
        "base_model": {"base_model": str(place.tiny), "max_length": 6000},
        "recipe": {**RECIPE, "precision": "float32", "workers": 1},
        "decoding": {"mode": "free", "max_new_tokens": 4, "free_cases": 0},
    }
    with postgres_server() as url:
        variables = {"PO_ARTIFACTS_ROOT": str(root), "DAGSTER_POSTGRES_URL": url}
        with deployment(tmp_path / "dagster", CLUSTER, monkeypatch, **variables) as ray:
            assert "Postgres" in type(ray.instance.run_storage).__name__
            run = ray.wait_for(ray.materialize(resources=resources), 420)
            made = {
                event.asset_key.to_user_string()
                for event in ray.events(run.run_id, dg.DagsterEventType.ASSET_MATERIALIZATION)
                if event.asset_key
            }
            assert made == ASSETS, ray.said(run.run_id)
            (failed,) = ray.events(run.run_id, dg.DagsterEventType.STEP_FAILURE)
            assert failed.step_key == "eval_report_gate"
            assert run.status == dg.DagsterRunStatus.FAILURE
            assert not ray.will_be_retried(run.run_id)

            devices = ray.seen.devices
            assert {step: devices[step] for step in GPU_STEPS} == {step: {"0"} for step in GPU_STEPS}
            others = set(devices) - GPU_STEPS
            assert {step: devices[step] for step in others} == {step: {""} for step in others}
            assert {"raw_teacher", "normalized_teacher", "supervised_dataset", "eval_report_gate"} <= others
            assert all(len(steps & GPU_STEPS) <= 1 for steps in ray.seen.together)
    ledger = (root / "distillation" / "po_teacher_ledger.jsonl").read_text().splitlines()
    assert len(ledger) == 8
    assert json.loads((root / "evaluation" / "po_eval_report.json").read_text())["gate"]["passed"] is False
