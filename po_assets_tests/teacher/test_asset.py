"""teacher_batch in Dagster: its checks and metadata; and the jobs of all that is launched by itself."""

import logging
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from po_assets.automation.jobs import ask_teacher
from po_assets.dag import Artifacts, JsonlIOManager
from po_assets.dataset.settings import SelectionSettings
from po_assets.definitions import defs
from po_assets.errors import UserError
from po_assets.model import BaseModel
from po_assets.review.assets import synthetic_conflicts
from po_assets.review.settings import ReviewSettings
from po_assets.teacher.assets import teacher_batch, teacher_batch_checks
from po_assets.teacher.settings import BatchPlan, TeacherLLM
from po_assets_tests.teacher.scenes import KEY, KEY_VARIABLE, TOO_THIN, Scene, llm
from po_assets_tests.teacher.teacher_server import Does, in_turn, teacher


def materialize(
    scene: Scene, url: str, changes: dict[str, Any] | None = None, selection: Any = None
) -> dg.ExecuteInProcessResult:
    return dg.materialize(
        [teacher_batch, teacher_batch_checks],
        selection=selection,
        resources={
            "artifacts": Artifacts(root=str(scene.layout.root)),
            "teacher_llm": llm(url, **(changes or {})),
            "batch_plan": scene.plan(),
        },
        raise_on_error=False,
    )


def test_a_batch_shows_outcomes_cost_and_what_is_left(scene: Scene) -> None:
    """Numbers as numbers, so that they are plotted over runs; outcomes as a table with examples."""
    with teacher(in_turn(Does(text=TOO_THIN), Does(status=500))) as server:
        result = materialize(scene, server.url)
    assert result.success
    (event,) = result.asset_materializations_for_node("teacher_batch")
    metadata = {key: value.value for key, value in event.metadata.items()}
    assert (metadata["dagster/row_count"], metadata["requests"], metadata["left_to_ask"]) == (5, 7, 0)
    assert metadata["acceptance_rate"] == 0.8333
    assert metadata["cost"] == pytest.approx(6 * 0.0049)
    assert metadata["model"] == "test-model at 127.0.0.1"
    # Which of two rare outcomes came first is up to the workers.
    outcomes = sorted(metadata["outcomes"].splitlines())
    assert [line.partition(",")[0] for line in outcomes] == ["- **accepted**", "- **below_score**", "- **error**"]
    assert outcomes[0].endswith(": 5 requests (71.4%)")
    assert "scores 0.792, 0.82 is asked for" in metadata["examples"]
    assert {one.check_name: one.passed for one in result.get_asset_check_evaluations()} == {
        "ledger_balances": True,
        "acceptance_rate": True,
        "within_budget": True,
    }


def test_wrong_settings_fail_the_run_with_all_faults(scene: Scene) -> None:
    """Before the first step, and before anything is asked."""
    resources = {
        "artifacts": {"config": {"root": str(scene.layout.root)}},
        "teacher_llm": {"config": {"base_url": "nowhere", "concurrency": 0}},
        "batch_plan": {"config": {"tries": 1}},
    }
    job = defs.resolve_job_def(ask_teacher.name)
    with pytest.raises(dg.DagsterError) as caught:
        job.execute_in_process(run_config={"resources": resources})
    assert isinstance(caught.value.__cause__, UserError)
    assert "base_url is 'nowhere'" in str(caught.value.__cause__)
    assert "concurrency is 0; it must be at least 1." in str(caught.value.__cause__)
    assert scene.landed == {}


def test_the_key_is_used_and_is_in_no_file_no_line_and_no_figure(
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Read with a line end, as other tools than a shell leave it; repeated by the server; with the client's debug log."""
    monkeypatch.setenv(KEY_VARIABLE, f" {KEY}\n")
    caplog.set_level("DEBUG")
    rude = Does(status=400, error={"message": f"bad request with {KEY}", "code": "x"})
    with teacher(in_turn(rude)) as server:
        result = materialize(scene, server.url, {"api_key_variable": KEY_VARIABLE})
    assert result.success
    assert {asked.headers["authorization"] for asked in server.asked} == {f"Bearer {KEY}"}
    assert any("[key]" in row["detail"] for row in scene.ledger)
    assert "openai" in {record.name.split(".")[0] for record in caplog.records}
    files = [path for path in Path(str(scene.layout.root)).rglob("*") if path.is_file()]
    assert len(files) > 3  # journal, ledger and report among them
    said = [*map(str, result.all_events), *capfd.readouterr(), caplog.text]
    assert not [where for where in said if KEY in where]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_without_a_model_the_step_fails_and_its_checks_say_what_to_do(scene: Scene) -> None:
    """In one sentence each; checks may be run from the UI at any time."""
    result = materialize(scene, "http://x/v1", {"model": ""})
    (failure,) = result.get_step_failure_events()
    assert "model is empty" in str(failure.step_failure_data.user_failure_data)
    result = materialize(scene, "http://x/v1", selection=dg.AssetSelection.checks_for_assets(teacher_batch))
    for one in result.get_asset_check_evaluations():
        assert not one.passed
        assert "Materialize teacher_batch." in (one.description or "")
    assert scene.landed == {}


@pytest.mark.parametrize(
    ("job", "asset"),
    [
        ("ask_teacher", "teacher_batch"),
        ("conflicts_on_demand", "synthetic_conflicts"),
        ("candidates_for_people", "review_candidates"),
    ],
)
def test_what_is_launched_by_itself_has_a_job_of_its_own(job: str, asset: str) -> None:
    """The graph's job does not make it; a batch of hours does not keep the graph from running."""
    jobs = {one.name: one for one in defs.resolve_all_job_defs() if not one.name.startswith("__")}
    selected = {
        name: {key.to_user_string() for key in one.asset_layer.selected_asset_keys} for name, one in jobs.items()
    }
    assert selected[job] == {asset}
    assert [name for name, keys in selected.items() if asset in keys] == [job]
    assert jobs[ask_teacher.name].executor_def is dg.in_process_executor


@pytest.mark.parametrize("selected", [["teacher_batch", "synthetic_conflicts"], None])
def test_materialize_all_asks_no_teacher_and_lands_no_rows(tmp_path: Path, selected: list[str] | None) -> None:
    """Beside other assets they are left out with a word; so they are in a run that names no selection at all."""
    job = dg.Definitions(
        assets=[teacher_batch, synthetic_conflicts],
        resources={
            "artifacts": Artifacts(root=str(tmp_path)),
            "io_manager": JsonlIOManager(artifacts=Artifacts(root=str(tmp_path))),
            "teacher_llm": TeacherLLM(),
            "batch_plan": BatchPlan(),
            "curation": ReviewSettings(),
            "selection": SelectionSettings(),
            "base_model": BaseModel(),
        },
    ).resolve_implicit_global_asset_job_def()
    with dg.instance_for_test() as instance:
        keys = [dg.AssetKey(name) for name in selected] if selected else None
        result = job.execute_in_process(instance=instance, asset_selection=keys)
        said = [entry.user_message for entry in instance.all_logs(result.run_id) if entry.level >= logging.WARNING]
    assert result.success
    assert not result.get_asset_materialization_events()
    assert not any(tmp_path.iterdir())
    assert any("No teacher was asked" in text and "launch the job ask_teacher." in text for text in said)
    assert any("No conflicts rows were made" in text and "the job conflicts_on_demand." in text for text in said)
