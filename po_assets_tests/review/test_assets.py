"""The two assets with their checks, run by Dagster."""

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from po_assets.dag import Artifacts, JsonlIOManager
from po_assets.dataset.holdout import HoldOut
from po_assets.dataset.settings import SelectionSettings
from po_assets.model import BaseModel
from po_assets.review.assets import review_candidates, synthetic_conflicts
from po_assets.review.checks import made_rows, rows_are_sound, synthetic_conflicts_checks
from po_assets.review.conflicts import LANDED_NAME
from po_assets.review.review_file import land_corrections
from po_assets.review.settings import ReviewSettings
from po_assets.storage import Layout, read_manifest, read_rows
from po_assets_tests.model.tiny_model import make_tiny_model
from po_assets_tests.review.scenes import land, take_in, teacher_rows


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), context=8192)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    rows = teacher_rows(150)
    return take_in(land(tmp_path, teacher=[rows[0] | {"score": 0.99}, *rows[1:]]))


def run(layout: Layout, tokenizer: Path, selection: str | dg.AssetSelection, **settings: Any) -> Any:
    artifacts = Artifacts(root=str(layout.root))
    return dg.materialize(
        [synthetic_conflicts, review_candidates, synthetic_conflicts_checks],
        selection=dg.AssetSelection.assets(selection) if isinstance(selection, str) else selection,
        resources={
            "artifacts": artifacts,
            "io_manager": JsonlIOManager(artifacts=artifacts),
            "base_model": BaseModel(base_model=str(tokenizer), max_length=8000),
            "selection": SelectionSettings(),
            "curation": ReviewSettings(**settings),
        },
        raise_on_error=False,
    )


def metadata(result: Any, asset: str) -> dict[str, Any]:
    assert result.success
    (event,) = result.asset_materializations_for_node(asset)
    return {name: value.value for name, value in event.metadata.items()}


def failure(result: Any) -> str:
    (event,) = result.get_step_failure_events()
    return str(event.step_failure_data.user_failure_data.description)


def checks(result: Any) -> dict[str, dg.AssetCheckEvaluation]:
    return {check.check_name: check for check in result.get_asset_check_evaluations()}


def test_conflicts_are_made_audited_and_landed(layout: Layout, tokenizer: Path) -> None:
    """What the page of the asset shows: numbers, patterns, a preview, where it landed; and three passed checks."""
    result = run(layout, tokenizer, "synthetic_conflicts", target_conflicts_share=0.1)
    shown = metadata(result, "synthetic_conflicts")
    needed = shown["needed"]
    assert shown["dagster/row_count"] == needed > 10
    assert shown["share"] >= 0.1
    assert shown["landing"].startswith(f"{needed} rows landed in synthetic_conflicts.jsonl")
    assert {"patterns", "preview"} <= shown.keys()
    assert (layout.incoming / LANDED_NAME).read_bytes() == layout.synthetic_conflicts.read_bytes()
    said = checks(result)
    passed = dict.fromkeys(("share_reached", "rows_are_sound", "style_leakage"), True)
    assert {name: check.passed for name, check in said.items()} == passed
    assert 0 <= said["style_leakage"].metadata["auc"].value < said["style_leakage"].metadata["auc_limit"].value
    assert said["share_reached"].metadata["made"].value == needed
    assert read_manifest(layout.synthetic_conflicts).extra["made"] == needed


def test_a_row_that_was_changed_by_hand_fails_the_audit(layout: Layout, tokenizer: Path) -> None:
    """The check names the row and every fault of it."""
    run(layout, tokenizer, "synthetic_conflicts")
    rows = list(read_rows(layout.synthetic_conflicts))
    rows[0] |= {"score": 0.99, "teacher_product_owner_review": "status: aligned"}
    rows[0]["metadata"] = {"parents": ["gone"], "pattern": "guess"}
    layout.synthetic_conflicts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run(layout, tokenizer, dg.AssetSelection.checks_for_assets(synthetic_conflicts))
    check = checks(result)["rows_are_sound"]
    assert not check.passed
    assert f"1 of {len(rows)} made rows is not sound." in check.description
    shown = check.metadata["rows"].value.records[0].data["fault"]
    assert shown.startswith("it is not valid: the REVIEW has no summary")
    (whole,) = rows_are_sound(made_rows(layout, rows, {"least_score": 0.82}, HoldOut([], 0.8))).rows
    for part in ("it scores", "it declares 0.99", "its status is not conflicts", "its pattern is 'guess'", "gone"):
        assert part in whole["fault"]


def test_without_teacher_tables_the_asset_to_materialize_is_named(tmp_path: Path, tokenizer: Path) -> None:
    """Nothing lands, and no review file is written."""
    layout = land(tmp_path)
    said = failure(run(layout, tokenizer, "synthetic_conflicts"))
    assert "Materialize raw_teacher and normalized_teacher first." in said
    assert not (layout.incoming / LANDED_NAME).exists()
    said = failure(run(layout, tokenizer, "review_candidates"))
    assert said.startswith("There is no ")
    assert said.endswith("po_teacher_normalized.jsonl' yet. Materialize normalized_teacher first.")
    assert not layout.review_file.exists()


def test_candidates_are_written_and_counted_and_edits_are_never_overwritten(layout: Layout, tokenizer: Path) -> None:
    """An edited file stays until its corrections are taken or it is deleted; no answer disappears without a number."""
    shown = metadata(run(layout, tokenizer, "review_candidates"), "review_candidates")
    assert (shown["teacher_rows"], shown["evaluation_cases"]) == (1, 0)
    assert "materialize baseline_report and eval_report first" in shown["left_out"]
    assert [shown[name] for name in ("teacher_rows_approved", "evaluation_cases_approved")] == [0, 0]
    (row,) = read_rows(layout.review_candidates)
    assert (row["kind"], row["place"]) == ("teacher_row", "teacher.jsonl:1")
    assert run(layout, tokenizer, "review_candidates").success  # untouched: written anew

    edited = layout.review_file.read_text().replace("verdict: ''", "verdict: right")
    layout.review_file.write_text(edited)
    said = failure(run(layout, tokenizer, "review_candidates"))
    assert "was edited and its corrections were not taken yet" in said
    assert layout.review_file.read_text() == edited

    land_corrections(layout)
    shown = metadata(run(layout, tokenizer, "review_candidates"), "review_candidates")
    assert (shown["teacher_rows"], shown["teacher_rows_approved"]) == (0, 1)
    assert read_manifest(layout.review_candidates).inputs["approved_answers"]
