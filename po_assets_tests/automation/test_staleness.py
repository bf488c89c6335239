"""What is stale after what change, what the nightly schedule makes of it, and gates across runs; on a real instance."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.loader import LoadingContextForTest
from dagster._core.test_utils import create_run_for_test

from po_assets.automation.catch_up import artifact_problem, catch_up, nightly_catch_up, refuse_below_failed_gate
from po_assets.automation.jobs import main_job
from po_assets.dag import Artifacts
from po_assets.errors import UserError
from po_assets_tests.automation.live import LOCATION
from po_assets_tests.automation.tiny_definitions import tiny_definitions
from po_assets_tests.automation.workplace import Workplace, good_row, make_workplace

TEACHER = {"raw_teacher", "normalized_teacher"}
STUDENT = {"lora_adapter", "eval_report"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A workplace in which the graph ran once; to be copied, not changed."""
    place = make_workplace(tmp_path_factory.mktemp("finished"))
    with instance_of(place) as instance:
        run(place, instance, tiny_definitions(place.folder / "tiny"))
    return place


@pytest.fixture
def place(finished: Workplace, tmp_path: Path) -> Workplace:
    """A copy; the base model stays where it is, as its path is part of the settings."""
    for name in ("artifacts", "home"):
        shutil.copytree(getattr(finished, "root" if name == "artifacts" else "home"), tmp_path / name)
    return Workplace(tmp_path)


@pytest.fixture
def tiny(finished: Workplace) -> Path:
    return finished.folder / "tiny"


@pytest.fixture
def instance(place: Workplace) -> Iterator[dg.DagsterInstance]:
    with instance_of(place) as instance:
        yield instance


@pytest.fixture
def live(place: Workplace, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The main job as the UI's runs execute it, in the workplace."""
    monkeypatch.setenv("PO_ARTIFACTS_ROOT", str(place.root))
    monkeypatch.setenv("PO_TEST_BASE_MODEL", str(tiny))
    return ReconstructableRepository.for_module(LOCATION, "defs").get_reconstructable_job(main_job.name)


def instance_of(place: Workplace) -> Any:
    """The instance in the workplace's DAGSTER_HOME."""
    return dg.DagsterInstance.from_config(str(place.home))


def run(
    place: Workplace, instance: dg.DagsterInstance, defs: dg.Definitions, *selection: str, **resources: Any
) -> dg.ExecuteInProcessResult:
    """Run the main job, or some of its assets; `resources` are settings as made in the Launchpad."""
    config = {"artifacts": {"root": str(place.root)}, **resources}
    return defs.resolve_job_def(main_job.name).execute_in_process(
        instance=instance,
        asset_selection=[dg.AssetKey(name) for name in selection] or None,
        run_config={"loggers": {"console": {}}, "resources": {name: {"config": c} for name, c in config.items()}},
        raise_on_error=False,
    )


def unsynced(instance: dg.DagsterInstance, defs: dg.Definitions) -> set[str]:
    """Assets of the job that Dagster itself calls stale or missing, as the UI's tag says."""
    graph = defs.resolve_asset_graph()
    resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
    keys = main_job.selection.resolve(graph)
    return {key.to_user_string() for key in keys if resolver.get_status(key).value != "FRESH"}


def to_catch_up(place: Workplace, instance: dg.DagsterInstance, defs: dg.Definitions) -> tuple[set[str], set[str]]:
    """What the schedule would make, and what a gate keeps it from."""
    graph, layout = defs.resolve_asset_graph(), Artifacts(root=str(place.root)).layout
    found = catch_up(instance, graph, main_job.selection.resolve(graph), partial(artifact_problem, layout))
    return {key.to_user_string() for key in found.stale}, {key.to_user_string() for key in found.blocked}


def steps(result: dg.ExecuteInProcessResult) -> set[str]:
    return {event.step_key for event in result.all_events if event.is_step_start and event.step_key}


def test_the_same_data_again_leaves_everything_fresh_and_costs_nothing(
    place: Workplace, instance: dg.DagsterInstance, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Landed with a new time, run again: no model is loaded for training or answers, no data version changes."""
    defs = tiny_definitions(tiny)
    assert unsynced(instance, defs) == set()
    shutil.copy(place.incoming / "good.jsonl", place.incoming / "again")
    (place.incoming / "again").replace(place.incoming / "good.jsonl")
    from po_assets.evaluation import answering
    from po_assets.training import student

    def never(*_arguments: object, **_options: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(answering, "load_base_model", never)
    monkeypatch.setattr(student, "load_base_model", never)
    keys = [dg.AssetKey(name) for name in sorted(TEACHER | STUDENT | {"supervised_dataset", "baseline_report"})]
    before = instance.get_latest_materialization_code_versions(keys)
    versions = [data_version(instance, key) for key in keys]
    result = run(place, instance, defs)
    assert "lora_adapter" in steps(result)
    assert [data_version(instance, key) for key in keys] == versions
    assert instance.get_latest_materialization_code_versions(keys) == before
    assert unsynced(instance, defs) == set()


def observe(place: Workplace, instance: dg.DagsterInstance, defs: dg.Definitions) -> None:
    """What the button Observe of `teacher_files` does."""
    job = defs.resolve_implicit_global_asset_job_def()
    config = {"resources": {"artifacts": {"config": {"root": str(place.root)}}}}
    job.execute_in_process(instance=instance, asset_selection=[dg.AssetKey("teacher_files")], run_config=config)


@pytest.mark.slow
def test_observing_makes_stale_only_what_has_changed(
    place: Workplace, instance: dg.DagsterInstance, tiny: Path
) -> None:
    """After `make run`, with which no sensor ever looked, and after a run that read more than the last look saw."""
    defs = tiny_definitions(tiny)
    observe(place, instance, defs)
    assert unsynced(instance, defs) == set()
    assert to_catch_up(place, instance, defs) == (set(), set())
    assert tick(place, instance, defs).skip_message == "Nothing is stale."
    place.land("more", good_row("CrossPlan41"))
    run(place, instance, defs, "raw_teacher")
    observe(place, instance, defs)
    assert unsynced(instance, defs) == {"normalized_teacher"}
    place.land("more", good_row("CrossPlan42"))
    observe(place, instance, defs)
    assert unsynced(instance, defs) == {"raw_teacher", "normalized_teacher"}
    assert "raw_teacher was made from other teacher_files" in tick(place, instance, defs).tags["reason"]


def data_version(instance: dg.DagsterInstance, key: dg.AssetKey) -> str:
    event = instance.get_latest_materialization_event(key)
    assert event is not None
    assert event.asset_materialization is not None
    return str((event.asset_materialization.tags or {})["dagster/data_version"])


@pytest.mark.parametrize(
    ("change", "own", "below"),
    [
        ({"selection": {"min_score": 0.6}}, {"supervised_dataset"}, STUDENT),
        ({"selection": {"max_rejected_share": 0.2}}, set(), set()),
        ({"recipe": {"rank": 8}}, {"lora_adapter"}, {"eval_report"}),
        ({"recipe": {"workers": 2}}, set(), set()),
        ({"decoding": {"max_new_tokens": 9}}, {"baseline_report", "eval_report"}, set()),
        ({"decoding": {"free_cases": 1}}, {"eval_report"}, set()),
    ],
)
def test_a_changed_setting_makes_exactly_what_depends_on_it_stale(
    finished: Workplace, tiny: Path, change: dict[str, Any], own: set[str], below: set[str]
) -> None:
    """Dagster shows the assets themselves; the schedule also takes what is below, in the same night."""
    defs = tiny_definitions(tiny, **change)
    with instance_of(finished) as instance:
        assert unsynced(instance, defs) == own
        assert to_catch_up(finished, instance, defs) == (own | below, set())


@pytest.mark.parametrize(
    ("name", "own", "below"),
    [
        ("PROMPT_VERSION", {"supervised_dataset", "lora_adapter", "baseline_report", "eval_report"}, set()),
        pytest.param(
            "METRIC_VERSION",
            {"normalized_teacher", "baseline_report", "eval_report"},
            {"supervised_dataset"} | STUDENT,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_another_prompt_or_metric_makes_its_users_stale(
    finished: Workplace, tiny: Path, name: str, own: set[str], below: set[str]
) -> None:
    """Their versions are in the code versions: a code location of another version sees the old assets as stale."""
    script = f"""
import po_assets.product_owner as product_owner
import po_assets.product_owner.{"prompts" if name == "PROMPT_VERSION" else "metric"} as module
product_owner.{name} = module.{name} = "next"
from pathlib import Path
from po_assets_tests.automation.test_staleness import instance_of, to_catch_up, unsynced
from po_assets_tests.automation.tiny_definitions import tiny_definitions
from po_assets_tests.automation.workplace import Workplace
place, defs = Workplace(Path({str(finished.folder)!r})), tiny_definitions(Path({str(tiny)!r}))
import json
with instance_of(place) as instance:
    print(json.dumps([sorted(unsynced(instance, defs)), sorted(to_catch_up(place, instance, defs)[0])]))
"""
    output = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True, env=os.environ
    ).stdout
    stale, caught_up = json.loads(output.splitlines()[-1])
    assert set(stale) == own
    assert set(caught_up) == own | below


def test_a_setting_of_the_launchpad_is_that_runs_choice(
    place: Workplace, instance: dg.DagsterInstance, tiny: Path
) -> None:
    """What it made is in sync; what is below goes stale by its data, and the night does not undo the choice."""
    defs = tiny_definitions(tiny)
    assert run(place, instance, defs, "lora_adapter", recipe={"rank": 8}).success
    assert unsynced(instance, defs) == {"eval_report"}
    assert to_catch_up(place, instance, defs) == ({"eval_report"}, set())


def test_a_file_that_is_gone_is_caught_up(place: Workplace, instance: dg.DagsterInstance, tiny: Path) -> None:
    """Dagster believes its own history; the schedule looks."""
    shutil.rmtree(place.root / "models" / "po_student_v2")
    defs = tiny_definitions(tiny)
    assert unsynced(instance, defs) == set()
    assert to_catch_up(place, instance, defs)[0] == STUDENT


def test_changed_evaluation_cases_are_caught_up(place: Workplace, instance: dg.DagsterInstance, tiny: Path) -> None:
    """People write this file, and no sensor watches it; whoever depends on the cases is made again."""
    cases = place.root / "evaluation" / "po_eval_cases.jsonl"
    cases.write_text("".join(cases.read_text().splitlines(keepends=True)[:2]))
    stale, blocked = to_catch_up(place, instance, tiny_definitions(tiny))
    assert stale == {"eval_cases", "supervised_dataset", "baseline_report", *STUDENT}
    assert blocked == set()


def tick(place: Workplace, instance: dg.DagsterInstance, defs: dg.Definitions) -> Any:
    """A tick of the schedule."""
    # Left open, it would stay the process's current instance until the garbage collector finds it.
    with dg.build_schedule_context(
        instance=instance,
        repository_def=defs.get_repository_def(),
        resources={"artifacts": Artifacts(root=str(place.root))},
    ) as context:
        return nightly_catch_up(context)


def test_while_a_run_is_on_its_way_the_night_starts_none(
    place: Workplace, instance: dg.DagsterInstance, tiny: Path
) -> None:
    """It would make the same again."""
    run_on = create_run_for_test(instance, job_name=main_job.name, status=dg.DagsterRunStatus.STARTED)
    result = tick(place, instance, tiny_definitions(tiny, recipe={"rank": 8}))
    assert isinstance(result, dg.SkipReason)
    assert result.skip_message == f"Run {run_on.run_id[:8]} of the graph has not ended yet."


def test_the_night_runs_what_is_stale_and_what_is_below(
    place: Workplace, instance: dg.DagsterInstance, tiny: Path
) -> None:
    """One run, with its reasons in a tag; after it nothing is stale."""
    defs = tiny_definitions(tiny, recipe={"rank": 8})
    request = tick(place, instance, defs)
    assert request.asset_selection == [dg.AssetKey("lora_adapter"), dg.AssetKey("eval_report")]
    assert request.tags["reason"] == (
        "lora_adapter was made by other code or with other settings; eval_report depends on lora_adapter"
    )
    result = run(place, instance, defs, *(key.to_user_string() for key in request.asset_selection))
    assert steps(result) == {"lora_adapter", "lora_adapter_checks", "eval_report", "eval_report_gate"}
    assert isinstance(tick(place, instance, defs), dg.SkipReason)


def bad_landing(place: Workplace, instance: dg.DagsterInstance, defs: dg.Definitions) -> None:
    """A run that ends at rejected_share."""
    place.land("bad", "no json", "no json either")
    result = run(place, instance, defs)
    failed = [
        e.check_name for e in result.get_asset_check_evaluations() if not e.passed and e.severity.value == "ERROR"
    ]
    assert failed == ["rejected_share"]
    assert "supervised_dataset" not in steps(result)


def test_below_a_failed_gate_nothing_is_made_at_night_or_by_hand(
    place: Workplace, instance: dg.DagsterInstance, tiny: Path, live: Any
) -> None:
    """The tick names the check; by hand, with the executor of the UI's runs, the input has to be made anew, too."""
    defs = tiny_definitions(tiny)
    bad_landing(place, instance, defs)
    assert to_catch_up(place, instance, defs) == (set(), {"supervised_dataset", *STUDENT})
    result = tick(place, instance, defs)
    assert isinstance(result, dg.SkipReason)
    assert "the check rejected_share of normalized_teacher failed" in str(result.skip_message)
    below = [dg.AssetKey("supervised_dataset")]
    before = (place.root / "distillation" / "po_teacher_supervised.jsonl").read_bytes()
    with dg.execute_job(live, instance, asset_selection=below, raise_on_error=False) as refused:
        (failure,) = [event for event in refused.all_events if event.is_run_failure]
    said = str(failure.event_specific_data)
    assert "the blocking check rejected_share of normalized_teacher failed when it was last run" in said
    assert "materialize normalized_teacher together with what is below it" in said
    assert (place.root / "distillation" / "po_teacher_supervised.jsonl").read_bytes() == before
    (place.incoming / "bad.jsonl").unlink()
    place.land("corrected", good_row("CrossPlan41"))
    with_input = [dg.AssetKey(name) for name in sorted(TEACHER)] + below
    with dg.execute_job(live, instance, asset_selection=with_input, raise_on_error=False) as made:
        assert made.success


def run_part(
    place: Workplace,
    instance: dg.DagsterInstance,
    defs: dg.Definitions,
    assets: set[str],
    checks: set[dg.AssetCheckKey],
) -> dg.ExecuteInProcessResult:
    """Run exactly these assets and these checks."""
    part = defs.resolve_job_def(main_job.name).get_subset(
        asset_selection={dg.AssetKey(name) for name in assets}, asset_check_selection=checks
    )
    config = {"loggers": {"console": {}}, "resources": {"artifacts": {"config": {"root": str(place.root)}}}}
    return part.execute_in_process(instance=instance, run_config=config, raise_on_error=False)


def refusal(instance: dg.DagsterInstance, defs: dg.Definitions, *assets: str) -> str:
    """What a run of these assets with their checks is told before its first step; empty when it may begin."""
    keys = [dg.AssetKey(name) for name in assets]
    try:
        refuse_below_failed_gate(instance, defs.resolve_asset_graph(), keys, keys)
    except UserError as error:
        return str(error)
    return ""


def checks_of(defs: dg.Definitions, *assets: str) -> set[dg.AssetCheckKey]:
    return {key for key in defs.resolve_asset_graph().asset_check_keys if key.asset_key.to_user_string() in assets}


def test_what_was_not_checked_since_it_was_made_counts_as_not_passed(
    place: Workplace, instance: dg.DagsterInstance, tiny: Path
) -> None:
    """As when the check's process dies. The verdict about older data does not count; running the checks alone does."""
    defs = tiny_definitions(tiny)
    place.land("more", good_row("CrossPlan41"))
    assert run_part(place, instance, defs, TEACHER, set()).success
    assert refusal(instance, defs, "supervised_dataset", "lora_adapter") == (
        "Nothing was made: the blocking check ledger_balances of normalized_teacher has not been run on the data that "
        "normalized_teacher holds now. Run the checks of normalized_teacher, or materialize normalized_teacher "
        "together with what is below."
    )
    assert "has_records of raw_teacher has not been run" in refusal(instance, defs, "normalized_teacher")
    assert refusal(instance, defs, *TEACHER, "supervised_dataset") == ""
    assert refusal(instance, defs, "eval_report") == ""

    only_one = {dg.AssetCheckKey(dg.AssetKey("normalized_teacher"), "ledger_balances")}
    assert run_part(place, instance, defs, set(), only_one).success
    assert "rejected_share of normalized_teacher has not been run" in refusal(instance, defs, "supervised_dataset")
    assert run_part(place, instance, defs, set(), checks_of(defs, *TEACHER)).success
    assert refusal(instance, defs, "supervised_dataset") == ""
    assert to_catch_up(place, instance, defs) == ({"supervised_dataset", *STUDENT}, set())


@pytest.mark.slow
def test_the_night_checks_what_was_left_unchecked(place: Workplace, instance: dg.DagsterInstance, tiny: Path) -> None:
    """It makes the inputs again with their checks, finds out that they are bad, and leaves it at that."""
    defs = tiny_definitions(tiny)
    place.land("bad", *["no json"] * 4)
    assert run_part(place, instance, defs, TEACHER, set()).success
    request = tick(place, instance, defs)
    assert request.tags["reason"].startswith(
        "raw_teacher was not checked by has_records since it was made; "
        "normalized_teacher was not checked by ledger_balances since it was made; supervised_dataset "
    )
    before = (place.root / "distillation" / "po_teacher_supervised.jsonl").read_bytes()
    result = run(place, instance, defs, *(key.to_user_string() for key in request.asset_selection))
    assert {"raw_teacher_checks", "normalized_teacher_checks"} <= steps(result)
    assert "supervised_dataset" not in steps(result)
    assert (place.root / "distillation" / "po_teacher_supervised.jsonl").read_bytes() == before
    assert "rejected_share of normalized_teacher failed when it was last run" in refusal(
        instance, defs, "supervised_dataset"
    )
    assert "the check rejected_share of normalized_teacher failed" in str(tick(place, instance, defs).skip_message)


def test_a_check_that_was_planned_and_not_reached_takes_no_verdict_back(
    place: Workplace, instance: dg.DagsterInstance, tiny: Path
) -> None:
    """A run that ends at its first asset has planned every check; what the assets hold has passed all the same."""
    defs = tiny_definitions(tiny)
    place.land("good", "")
    assert "normalized_teacher" not in steps(run(place, instance, defs))
    (planned,) = instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(dg.AssetKey("supervised_dataset"), "schema"), limit=1
    )
    assert planned.status.value == "PLANNED"
    assert refusal(instance, defs, "lora_adapter") == ""


def test_what_this_instance_never_made_is_not_refused(tmp_path: Path, tiny: Path) -> None:
    """Artifacts that were brought here, and what has no checks; the steps look at the files themselves."""
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as empty:
        assert refusal(empty, tiny_definitions(tiny), "lora_adapter") == ""
        assert refusal(empty, tiny_definitions(tiny), "raw_teacher") == ""


@pytest.mark.slow
def test_reexecution_from_failure_repeats_only_what_is_needed(
    place: Workplace, instance: dg.DagsterInstance, live: Any
) -> None:
    """The gate is checked again and what is below is made; what was finished before is left alone."""
    place.land("bad", "no json", "no json either")
    with dg.execute_job(live, instance, raise_on_error=False) as result:
        assert not result.success
    options = dg.ReexecutionOptions.from_failure(result.run_id, instance)
    run_config = {"resources": {"selection": {"config": {"max_rejected_share": 0.9}}}}
    with dg.execute_job(
        live, instance, raise_on_error=False, reexecution_options=options, run_config=run_config
    ) as again:
        repeated = {event.step_key for event in again.all_events if event.is_step_start}
    assert {"normalized_teacher_checks", "supervised_dataset", "lora_adapter", "eval_report"} <= repeated
    assert not {"raw_teacher", "normalized_teacher", "eval_cases"} & repeated
