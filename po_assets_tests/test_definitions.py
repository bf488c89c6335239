"""The code location as a whole: it loads, and the graph is the one that was designed."""

import tomllib
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from po_assets.definitions import defs

REPOSITORY = Path(__file__).resolve().parents[1]

EDGES = {
    "teacher_files": set(),
    "eval_cases": set(),
    "raw_teacher": {"teacher_files"},
    "normalized_teacher": {"raw_teacher"},
    "supervised_dataset": {"normalized_teacher", "eval_cases"},
    "lora_adapter": {"supervised_dataset"},
    "baseline_report": {"eval_cases"},
    "eval_report": {"lora_adapter", "eval_cases", "baseline_report"},
    "exported_student": {"eval_report"},
    "teacher_batch": set(),
    "synthetic_conflicts": {"normalized_teacher", "eval_cases"},
    "review_candidates": {"normalized_teacher", "eval_cases", "baseline_report", "eval_report"},
}

CHECKS = {
    "raw_teacher": {"has_records": True},
    "normalized_teacher": {
        "schema": True,
        "ledger_balances": True,
        "rejected_share": True,
        "declared_scores_match_metric": False,
    },
    "eval_cases": {"preflight": True},
    "supervised_dataset": {
        "schema": True,
        "ledger_balances": True,
        "conflicts_share": True,
        "no_eval_overlap": True,
        "fits_context": True,
        "targets_pass_validator": True,
        "answer_not_in_prompt": False,
        "duplicate_prompts": False,
        "retention": False,
    },
    "lora_adapter": {"loads": True, "changes_the_model": True, "training_is_sane": True},
    "eval_report": {
        "case_count": True,
        "mean_score": True,
        "score_std": True,
        "delta_vs_baseline": True,
        "valid_answers": True,
        "judges": True,
        "non_inferiority": True,
        "status_accuracy": True,
        "worst_case": True,
        "own_questions": True,
        "consumer_prompts": True,
    },
    "exported_student": {"export_parity": True},
    "synthetic_conflicts": {"share_reached": False, "rows_are_sound": True, "style_leakage": True},
    "teacher_batch": {"ledger_balances": True, "acceptance_rate": False, "within_budget": True},
}


@pytest.fixture(scope="module")
def graph() -> Any:
    return defs.resolve_asset_graph()


def test_the_code_location_is_loadable() -> None:
    """Every asset, check, job, sensor, schedule and resource fits the others."""
    dg.Definitions.validate_loadable(defs)


def test_the_graph_has_the_designed_edges(graph: Any) -> None:
    """A change of the graph is a change of this test."""
    edges = {
        key.to_user_string(): {parent.to_user_string() for parent in graph.get(key).parent_keys}
        for key in graph.get_all_asset_keys()
    }
    assert edges == EDGES


def test_every_rule_is_a_check_and_the_errors_block(graph: Any) -> None:
    """Those block that fail with ERROR, or may: the gate's profile decides which of its criteria warn."""
    checks: dict[str, dict[str, bool]] = {}
    for key in graph.asset_check_keys:
        checks.setdefault(key.asset_key.to_user_string(), {})[key.name] = graph.get(key).blocking
    assert {asset: checks[asset] | expected for asset, expected in CHECKS.items()} == checks
    assert {asset: {name: checks[asset][name] for name in expected} for asset, expected in CHECKS.items()} == CHECKS


def test_every_asset_is_described_and_owned(graph: Any) -> None:
    """With a version, so that a change of code makes it stale, and a kind for its logo."""
    for key in graph.get_all_asset_keys() - {dg.AssetKey("teacher_files")}:
        node = graph.get(key)
        assert node.description, key
        assert node.owners, key
        assert node.kinds, key
        assert node.code_version, key
        assert node.group_name != "default", key


def test_sensor_and_schedule_run_by_default() -> None:
    """Dagster's own default is stopped."""
    repository = defs.get_repository_def()
    assert repository.get_sensor_def("new_teacher_data").default_status == dg.DefaultSensorStatus.RUNNING
    assert repository.get_schedule_def("nightly_catch_up").default_status == dg.DefaultScheduleStatus.RUNNING


def test_workspace_and_project_name_the_same_code_location() -> None:
    """`dg` reads pyproject.toml and hides workspace.yaml from `dagster dev`; they must agree."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["dg"]["project"]
    (module,) = (
        entry["python_module"] for entry in yaml.safe_load((REPOSITORY / "workspace.yaml").read_text())["load_from"]
    )
    assert (module["module_name"], module["location_name"]) == (
        project["code_location_target_module"],
        project["code_location_name"],
    )
