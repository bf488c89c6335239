"""What is stale after what change, what the nightly schedule makes of it, and gates across runs; on a real instance."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.execution.api import execute_run
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


def names(keys: Any) -> set[str]:
    return {key.to_user_string() for key in keys}


@dataclass(frozen=True)
class Scene:
    """A workplace with its instance, and definitions whose main job is run there."""

    place: Workplace
    instance: dg.DagsterInstance
    defs: dg.Definitions

    @property
    def graph(self) -> Any:
        """All assets with their checks."""
        return self.defs.resolve_asset_graph()

    def run(
        self, *assets: str, checks: set[dg.AssetCheckKey] | None = None, **resources: Any
    ) -> dg.ExecuteInProcessResult:
        """Run the main job, or some of its assets (and exactly these checks, if they are named).

        `resources` are settings as made in the Launchpad.
        """
        job, keys = self.defs.resolve_job_def(main_job.name), {dg.AssetKey(name) for name in assets}
        if assets or checks is not None:
            job = job.get_subset(asset_selection=keys, asset_check_selection=checks)
        config = {"artifacts": {"root": str(self.place.root)}, **resources}
        return job.execute_in_process(
            instance=self.instance,
            run_config={"loggers": {"console": {}}, "resources": {name: {"config": c} for name, c in config.items()}},
            raise_on_error=False,
        )

    def observe(self) -> None:
        """What the button Observe of `teacher_files` does."""
        self.defs.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=self.instance,
            asset_selection=[dg.AssetKey("teacher_files")],
            run_config={"resources": {"artifacts": {"config": {"root": str(self.place.root)}}}},
        )

    def unsynced(self) -> set[str]:
        """Assets of the job that Dagster itself calls stale or missing, as the UI's tag says."""
        resolver = CachingStaleStatusResolver(self.instance, self.graph, LoadingContextForTest(self.instance))
        keys = main_job.selection.resolve(self.graph)
        return names(key for key in keys if resolver.get_status(key).value != "FRESH")

    def to_catch_up(self) -> tuple[set[str], set[str]]:
        """What the schedule would make, and what a gate keeps it from."""
        problem = partial(artifact_problem, Artifacts(root=str(self.place.root)).layout)
        found = catch_up(self.instance, self.graph, main_job.selection.resolve(self.graph), problem)
        return names(found.stale), names(found.blocked)

    def tick(self) -> Any:
        """A tick of the schedule."""
        # Left open, it would stay the process's current instance until the garbage collector finds it.
        with dg.build_schedule_context(
            instance=self.instance,
            repository_def=self.defs.get_repository_def(),
            resources={"artifacts": Artifacts(root=str(self.place.root))},
        ) as context:
            return nightly_catch_up(context)

    def refusal(self, *assets: str) -> str:
        """What a run of these assets with their checks is told before its first step; empty when it may begin."""
        keys = [dg.AssetKey(name) for name in assets]
        try:
            refuse_below_failed_gate(self.instance, self.graph, keys, keys)
        except UserError as error:
            return str(error)
        return ""

    def versions(self) -> dict[str, Any]:
        """The data version and the code version of what was made last, by asset."""
        found = {}
        for key in main_job.selection.resolve(self.graph):
            event = self.instance.get_latest_materialization_event(key)
            assert event is not None
            assert event.asset_materialization is not None
            tags = event.asset_materialization.tags or {}
            found[key.to_user_string()] = (tags["dagster/data_version"], tags["dagster/code_version"])
        return found

    def training_rows(self) -> bytes:
        """What lies below the gate of normalized_teacher."""
        return (self.place.root / "distillation" / "po_teacher_supervised.jsonl").read_bytes()


@contextmanager
def scene_in(place: Workplace, **changes: dict[str, Any]) -> Iterator[Scene]:
    """The scene in the workplace's DAGSTER_HOME, with its tiny model and these settings changed."""
    with dg.DagsterInstance.from_config(str(place.home)) as instance:
        yield Scene(place, instance, tiny_definitions(place.tiny, **changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A workplace in which the graph ran once; to be copied, not changed."""
    place = make_workplace(tmp_path_factory.mktemp("finished"))
    with scene_in(place) as scene:
        scene.run()
    return place


@pytest.fixture
def scene(finished: Workplace, tmp_path: Path) -> Iterator[Scene]:
    """A copy of it; the base model stays where it is, as its path is part of the settings."""
    place = Workplace(tmp_path, finished.tiny)
    shutil.copytree(finished.root, place.root)
    shutil.copytree(finished.home, place.home)
    with scene_in(place) as scene:
        yield scene


@pytest.fixture
def live(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The main job as the UI's runs execute it, in the workplace."""
    monkeypatch.setenv("PO_ARTIFACTS_ROOT", str(scene.place.root))
    monkeypatch.setenv("PO_TEST_BASE_MODEL", str(scene.place.tiny))
    return ReconstructableRepository.for_module(LOCATION, "defs").get_reconstructable_job(main_job.name)


def changed(scene: Scene, **changes: dict[str, Any]) -> Scene:
    """The scene with other settings."""
    return replace(scene, defs=tiny_definitions(scene.place.tiny, **changes))


def steps(result: dg.ExecuteInProcessResult) -> set[str]:
    return {event.step_key for event in result.all_events if event.is_step_start and event.step_key}


def test_the_same_data_again_leaves_everything_fresh_and_costs_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Landed with a new time, run again: no model is loaded for training or answers, no data version changes."""
    assert scene.unsynced() == set()
    shutil.copy(scene.place.incoming / "good.jsonl", scene.place.incoming / "again")
    (scene.place.incoming / "again").replace(scene.place.incoming / "good.jsonl")

    def never(*_arguments: object, **_options: object) -> None:
        raise AssertionError("a model was loaded")

    for module in ("po_assets.evaluation.answering", "po_assets.training.student"):
        monkeypatch.setattr(f"{module}.load_base_model", never)
    before = scene.versions()
    assert "lora_adapter" in steps(scene.run())
    assert scene.versions() == before
    assert scene.unsynced() == set()


@pytest.mark.slow
def test_observing_makes_stale_only_what_has_changed(scene: Scene) -> None:
    """After `make run`, with which no sensor ever looked, and after a run that read more than the last look saw."""
    scene.observe()
    assert scene.unsynced() == set()
    assert scene.to_catch_up() == (set(), set())
    assert scene.tick().skip_message == "Nothing is stale."
    scene.place.land("more", good_row("CrossPlan41"))
    scene.run("raw_teacher")
    scene.observe()
    assert scene.unsynced() == {"normalized_teacher"}
    scene.place.land("more", good_row("CrossPlan42"))
    scene.observe()
    assert scene.unsynced() == {"raw_teacher", "normalized_teacher"}
    assert "raw_teacher was made from other teacher_files" in scene.tick().tags["reason"]


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
    ids=["min_score", "max_rejected_share", "rank", "workers", "max_new_tokens", "free_cases"],
)
def test_a_changed_setting_makes_exactly_what_depends_on_it_stale(
    finished: Workplace, change: dict[str, Any], own: set[str], below: set[str]
) -> None:
    """Dagster shows the assets themselves; the schedule also takes what is below, in the same night."""
    with scene_in(finished, **change) as scene:
        assert scene.unsynced() == own
        assert scene.to_catch_up() == (own | below, set())


@pytest.mark.parametrize(
    ("module", "name", "own", "below"),
    [
        ("prompts", "PROMPT_VERSION", {"supervised_dataset", "lora_adapter", "baseline_report", "eval_report"}, set()),
        pytest.param(
            "metric",
            "METRIC_VERSION",
            {"normalized_teacher", "baseline_report", "eval_report"},
            {"supervised_dataset"} | STUDENT,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["prompt", "metric"],
)
def test_another_prompt_or_metric_makes_its_users_stale(
    finished: Workplace, module: str, name: str, own: set[str], below: set[str]
) -> None:
    """Their versions are in the code versions: a code location of another version sees the old assets as stale."""
    script = f"""
import json
from pathlib import Path
import po_assets.product_owner as product_owner
import po_assets.product_owner.{module} as module
product_owner.{name} = module.{name} = "next"
from po_assets_tests.automation.test_staleness import scene_in
from po_assets_tests.automation.workplace import Workplace
with scene_in(Workplace(Path({str(finished.folder)!r}))) as scene:
    print(json.dumps([sorted(scene.unsynced()), sorted(scene.to_catch_up()[0])]))
"""
    command = [sys.executable, "-W", "ignore", "-c", script]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    stale, caught_up = json.loads(output.splitlines()[-1])
    assert set(stale) == own
    assert set(caught_up) == own | below


def test_a_setting_of_the_launchpad_is_that_runs_choice(scene: Scene) -> None:
    """What it made is in sync; what is below goes stale by its data, and the night does not undo the choice."""
    assert scene.run("lora_adapter", recipe={"rank": 8}).success
    assert scene.unsynced() == {"eval_report"}
    assert scene.to_catch_up() == ({"eval_report"}, set())


def test_a_file_that_is_gone_is_caught_up(scene: Scene) -> None:
    """Dagster believes its own history; the schedule looks."""
    shutil.rmtree(scene.place.root / "models" / "po_student_v2")
    assert scene.unsynced() == set()
    assert scene.to_catch_up()[0] == STUDENT


def test_changed_evaluation_cases_are_caught_up(scene: Scene) -> None:
    """People write this file, and no sensor watches it; whoever depends on the cases is made again."""
    cases = scene.place.root / "evaluation" / "po_eval_cases.jsonl"
    cases.write_text("".join(cases.read_text().splitlines(keepends=True)[:2]))
    assert scene.to_catch_up() == ({"eval_cases", "supervised_dataset", "baseline_report", *STUDENT}, set())


def test_while_a_run_is_on_its_way_the_night_starts_none(scene: Scene) -> None:
    """It would make the same again."""
    run_on = create_run_for_test(scene.instance, job_name=main_job.name, status=dg.DagsterRunStatus.STARTED)
    result = changed(scene, recipe={"rank": 8}).tick()
    assert isinstance(result, dg.SkipReason)
    assert result.skip_message == f"Run {run_on.run_id[:8]} of the graph has not ended yet."


def test_the_night_runs_what_is_stale_and_what_is_below(scene: Scene) -> None:
    """One run, with its reasons in a tag; after it nothing is stale."""
    scene = changed(scene, recipe={"rank": 8})
    request = scene.tick()
    assert request.asset_selection == [dg.AssetKey("lora_adapter"), dg.AssetKey("eval_report")]
    assert request.tags["reason"] == (
        "lora_adapter was made by other code or with other settings; eval_report depends on lora_adapter"
    )
    result = scene.run(*names(request.asset_selection))
    assert steps(result) == {"lora_adapter", "lora_adapter_checks", "eval_report", "eval_report_gate"}
    assert isinstance(scene.tick(), dg.SkipReason)


def test_below_a_failed_gate_nothing_is_made_at_night_or_by_hand(scene: Scene, live: Any) -> None:
    """The tick names the check; by hand, with the executor of the UI's runs, the input has to be made anew, too."""
    bad = scene.place.land("bad", "no json", "no json either")
    result = scene.run()
    evaluations = [one for one in result.get_asset_check_evaluations() if one.severity == dg.AssetCheckSeverity.ERROR]
    assert [one.check_name for one in evaluations if not one.passed] == ["rejected_share"]
    assert "supervised_dataset" not in steps(result)
    assert scene.to_catch_up() == (set(), {"supervised_dataset", *STUDENT})
    night = scene.tick()
    assert isinstance(night, dg.SkipReason)
    assert "the check rejected_share of normalized_teacher failed" in str(night.skip_message)
    below = [dg.AssetKey("supervised_dataset")]
    before = scene.training_rows()
    with dg.execute_job(live, scene.instance, asset_selection=below, raise_on_error=False) as refused:
        (failure,) = [event for event in refused.all_events if event.is_run_failure]
    said = str(failure.event_specific_data)
    assert "the blocking check rejected_share of normalized_teacher failed when it was last run" in said
    assert "materialize normalized_teacher together with what is below it" in said
    assert scene.training_rows() == before
    bad.unlink()
    scene.place.land("corrected", good_row("CrossPlan41"))
    with_input = [dg.AssetKey(name) for name in sorted(TEACHER)] + below
    with dg.execute_job(live, scene.instance, asset_selection=with_input, raise_on_error=False) as made:
        assert made.success


def test_what_was_not_checked_since_it_was_made_counts_as_not_passed(scene: Scene) -> None:
    """As when the check's process dies. The verdict about older data does not count; running the checks alone does."""
    scene.place.land("more", good_row("CrossPlan41"))
    assert scene.run(*TEACHER, checks=set()).success
    assert scene.refusal("supervised_dataset", "lora_adapter") == (
        "Nothing was made: the blocking check ledger_balances of normalized_teacher has not been run on the data that "
        "normalized_teacher holds now. Run the checks of normalized_teacher, or materialize normalized_teacher "
        "together with what is below."
    )
    assert "has_records of raw_teacher has not been run" in scene.refusal("normalized_teacher")
    assert scene.refusal(*TEACHER, "supervised_dataset") == ""
    assert scene.refusal("eval_report") == ""

    assert scene.run(checks={dg.AssetCheckKey(dg.AssetKey("normalized_teacher"), "ledger_balances")}).success
    assert "rejected_share of normalized_teacher has not been run" in scene.refusal("supervised_dataset")
    checks = {key for key in scene.graph.asset_check_keys if key.asset_key.to_user_string() in TEACHER}
    assert scene.run(checks=checks).success
    assert scene.refusal("supervised_dataset") == ""
    assert scene.to_catch_up() == ({"supervised_dataset", *STUDENT}, set())


@pytest.mark.slow
def test_the_night_checks_what_was_left_unchecked(scene: Scene) -> None:
    """It makes the inputs again with their checks, finds out that they are bad, and leaves it at that."""
    scene.place.land("bad", *["no json"] * 4)
    assert scene.run(*TEACHER, checks=set()).success
    request = scene.tick()
    assert request.tags["reason"].startswith(
        "raw_teacher was not checked by has_records since it was made; "
        "normalized_teacher was not checked by ledger_balances since it was made; supervised_dataset "
    )
    before = scene.training_rows()
    result = scene.run(*names(request.asset_selection))
    assert {"raw_teacher_checks", "normalized_teacher_checks"} <= steps(result)
    assert "supervised_dataset" not in steps(result)
    assert scene.training_rows() == before
    assert "rejected_share of normalized_teacher failed when it was last run" in scene.refusal("supervised_dataset")
    assert "the check rejected_share of normalized_teacher failed" in str(scene.tick().skip_message)


def test_a_check_that_was_planned_and_not_reached_takes_no_verdict_back(scene: Scene) -> None:
    """A run that ends at its first asset has planned every check; what the assets hold has passed all the same."""
    scene.place.land("good", "")
    assert "normalized_teacher" not in steps(scene.run())
    (planned,) = scene.instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(dg.AssetKey("supervised_dataset"), "schema"), limit=1
    )
    assert planned.status.value == "PLANNED"
    assert scene.refusal("lora_adapter") == ""


def test_a_run_that_waited_while_one_made_after_it_went_by_has_its_own_verdict(scene: Scene, live: Any) -> None:
    """As a run in the UI's queue does while `make run` is at work; Dagster's own list has that one's verdict first."""
    raw = dg.AssetKey("raw_teacher")
    job = live.get_subset(asset_selection={raw})
    waiting = scene.instance.create_run_for_job(job.get_definition(), asset_selection={raw})
    assert scene.run("raw_teacher").success
    assert execute_run(job, waiting, scene.instance).success
    made = scene.instance.get_latest_materialization_event(raw)
    assert made is not None
    assert made.run_id == waiting.run_id
    assert scene.refusal("normalized_teacher") == ""


def test_what_this_instance_never_made_is_not_refused(scene: Scene, tmp_path: Path) -> None:
    """Artifacts that were brought here, and what has no checks; the steps look at the files themselves."""
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as empty:
        assert replace(scene, instance=empty).refusal("lora_adapter") == ""
        assert replace(scene, instance=empty).refusal("raw_teacher") == ""


@pytest.mark.slow
def test_reexecution_from_failure_repeats_only_what_is_needed(scene: Scene, live: Any) -> None:
    """The gate is checked again and what is below is made; what was finished before is left alone."""
    scene.place.land("bad", "no json", "no json either")
    with dg.execute_job(live, scene.instance, raise_on_error=False) as result:
        assert not result.success
    options = dg.ReexecutionOptions.from_failure(result.run_id, scene.instance)
    config = {"resources": {"selection": {"config": {"max_rejected_share": 0.9}}}}
    with dg.execute_job(
        live, scene.instance, raise_on_error=False, reexecution_options=options, run_config=config
    ) as again:
        repeated = {event.step_key for event in again.all_events if event.is_step_start}
    assert {"normalized_teacher_checks", "supervised_dataset", "lora_adapter", "eval_report"} <= repeated
    assert not {"raw_teacher", "normalized_teacher", "eval_cases"} & repeated
