"""What happens to machines and people: killed and stopped processes, clocks set back, two at once, many files."""

import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest
import yaml
from upath import UPath

from po_assets.automation import executors
from po_assets.automation.catch_up import ROOT_TAG, gate_problem, made_elsewhere, refuse_below_failed_gate, root_tag
from po_assets.automation.executors import PROCESS_TAG, process_tag
from po_assets.automation.instance import check_history, opened_instance
from po_assets.automation.landing import new_teacher_data
from po_assets.dag import Artifacts, read_gate
from po_assets.definitions import defs
from po_assets.errors import UserError
from po_assets.evaluation.gate import gate_path
from po_assets.intake.landing import sources_of
from po_assets.storage import Layout, read_manifest
from po_assets_tests.automation.live import LOCATION, Server, dagster_dev
from po_assets_tests.automation.test_live import settled
from po_assets_tests.automation.test_processes import RUN, read_until, start
from po_assets_tests.automation.workplace import REPOSITORY, Workplace, good_row, make_workplace

SCHEMA = """query($s: PipelineSelector!) {runConfigSchemaOrError(selector: $s, mode: "default"){
... on RunConfigSchema{rootDefaultYaml}}}"""
LOG = """query($id: ID!) {logsForRun(runId: $id){... on EventConnection{events{
... on MessageEvent{message stepKey level} ... on MaterializationEvent{assetKey{path}}}}}}"""
WRITES = """
import sys, time
from pathlib import Path
from po_assets.automation.instance import opened_instance

print("ready", flush=True)
while not Path(sys.argv[2]).exists():
    time.sleep(0.005)
with opened_instance() as instance:
    instance.run_storage.set_cursor_values({sys.argv[1]: "written"})
    instance.event_log_storage.set_concurrency_slots(sys.argv[1], 1)
    instance.schedule_storage.all_instigator_state()
    instance.get_run_records()
"""


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return make_workplace(tmp_path)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as instance:
        yield instance


def landed(place: Workplace) -> set[str]:
    """The files of the last snapshot."""
    layout = Layout(UPath(place.root))
    return {source.file for source in sources_of(layout.raw)}


def whole(place: Workplace) -> None:
    """The last verdict is about the adapter that is there, and nobody left anything half written."""
    layout = Layout(UPath(place.root))
    record, manifest = read_gate(gate_path(layout)), read_manifest(layout.adapter)
    assert record is not None
    assert manifest is not None
    assert record.sha256 == manifest.sha256
    assert list(place.root.rglob(".staging-*")) == []


def daemon_tick(place: Workplace, moment: str = "") -> int:
    """The exit status of a daemon that ticks once, or dies in the tick."""
    command = [sys.executable, "-W", "ignore", "-m", "po_assets_tests.automation.daemon_driver", moment]
    return subprocess.run(command, cwd=REPOSITORY, env=place.environment(), check=False, timeout=240).returncode


@pytest.mark.slow
def test_a_daemon_killed_in_mid_tick_or_stopped_runs_every_landing_once(place: Workplace) -> None:
    """Killed at every moment of a tick, with a landing before and after each: one run, which takes in all of them.

    Then the daemon of `dagster dev` is stopped while more lands, and goes on: one more run.
    """
    moments = ("TICK_CREATED", "TICK_HELD", "RUN_CREATED", "RUN_LAUNCHED")
    for number, moment in enumerate(moments):
        place.land(f"before-{moment}", good_row(f"CrossPlan{number}1"))
        # Where the run exists already there is no such moment any more, and the tick ends.
        assert daemon_tick(place, moment) in (-signal.SIGKILL, 0)
        place.land(f"after-{moment}", good_row(f"CrossPlan{number}2"))
    assert daemon_tick(place) == 0
    with dg.DagsterInstance.from_config(str(place.home)) as instance:
        (run,) = [record.dagster_run for record in instance.get_run_records()]
        assert run.status == dg.DagsterRunStatus.QUEUED
    with dagster_dev(place) as server:
        server.wait_for_run(1, 300)
        settled(server, 1)
        assert landed(place) == {path.name for path in place.incoming.iterdir()}
        stopped_daemon(server, place)


def stopped_daemon(server: Server, place: Workplace) -> None:
    """SIGSTOP, two landings, SIGCONT: they are one run."""
    family = psutil.Process(server.process.pid).children(recursive=True)
    (daemon,) = [one for one in family if "dagster._daemon" in one.cmdline() and "grpc" not in one.cmdline()]
    daemon.suspend()
    place.land("while-stopped-1", good_row("CrossPlan91"))
    place.land("while-stopped-2", good_row("CrossPlan92"))
    daemon.resume()
    server.wait_for_run(2, 300)
    settled(server, 2)
    assert landed(place) == {path.name for path in place.incoming.iterdir()}
    whole(place)


@pytest.mark.slow
def test_command_line_and_ui_on_one_root_take_turns(place: Workplace) -> None:
    """A run of the UI is queued until the command line's ends; the command line is refused while the UI's works.

    What lies there has times in the future, as after a clock that was set back. The UI's run is that of the button
    "Materialize all", where there is no key and no model of a teacher.
    """
    with dagster_dev(place, OPENAI_API_KEY="", PO_TEACHER_MODEL="") as server:
        server.wait_for_run(1, 300)
        settled(server, 1)
        for path in place.root.rglob("*"):
            os.utime(path, (path.stat().st_mtime + 86_400,) * 2)
        run = start(place, "-c", RUN)
        read_until(run, "raw_teacher", 300)
        os.kill(run.pid, signal.SIGSTOP)  # else it may end before the other has started
        nodes = server.ask("{assetNodes{assetKey{path} isMaterializable}}")["assetNodes"]
        everything = [node["assetKey"]["path"][-1] for node in nodes if node["isMaterializable"]]
        launched = server.launch("__ASSET_JOB", everything)
        states = lambda: {one["runId"]: one["status"] for one in server.runs()}  # noqa: E731
        server.wait("the other to be queued", lambda: states().get(launched) == "QUEUED", 120)
        assert server.steps(launched) == set()
        assert run.poll() is None
        os.kill(run.pid, signal.SIGCONT)
        assert "3 cases were evaluated" in run.communicate(timeout=240)[0]
        server.wait("the UI's run to have its turn", lambda: "raw_teacher" in server.steps(launched), 120)
        other = start(place, "-c", RUN)
        said, _ = other.communicate(timeout=120)
        ended = server.wait_for_run(3, 300)
        assert ended["runId"] == launched
        assert "right now" in said or "3 cases were evaluated" in said  # it may have come too late to be refused
        whole(place)
        nothing_was_asked_of_a_teacher(server, launched)
        the_launchpad_lists_what_a_job_uses(server)


def nothing_was_asked_of_a_teacher(server: Server, run_id: str) -> None:
    """Everything else is made; the assets that people ask for by hand say that they were left out, and why."""
    events = server.ask(LOG, id=run_id)["logsForRun"]["events"]
    made = {event["assetKey"]["path"][-1] for event in events if event.get("assetKey")}
    said = [event["message"] for event in events if event["level"] in ("WARNING", "ERROR")]
    assert "teacher_batch" not in made
    assert any("No teacher was asked" in message for message in said), said
    assert {"raw_teacher", "supervised_dataset", "lora_adapter", "eval_report"} <= made, said


def the_launchpad_lists_what_a_job_uses(server: Server) -> None:
    """A visitor is shown no settings that do nothing."""

    def listed(job: str) -> set[str]:
        selector = {"repositoryName": "__repository__", "repositoryLocationName": LOCATION, "pipelineName": job}
        schema = server.ask(SCHEMA, s=selector)["runConfigSchemaOrError"]
        return set(yaml.safe_load(schema["rootDefaultYaml"])["resources"])

    assert listed("ask_teacher") == {"teacher_llm", "batch_plan"}
    assert listed("candidates_for_people") == {"curation", "selection"}
    assert not {"teacher_llm", "batch_plan", "curation"} & listed("product_owner_student")


@pytest.mark.slow
def test_an_empty_history_is_made_once_by_six_that_start_at_once(tmp_path: Path) -> None:
    """As two `make run` on a fresh clone, or `make run` and `make ui`: none finds half a database, all can write."""
    home, now = tmp_path / "home", tmp_path / "now"
    home.mkdir()
    (home / "dagster.yaml").touch()  # without it Dagster says so
    writers = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", WRITES, str(number), str(now)],
            cwd=REPOSITORY,
            env={**os.environ, "DAGSTER_HOME": str(home)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number in range(6)
    ]
    assert [writer.stdout.readline() for writer in writers if writer.stdout] == ["ready\n"] * 6
    now.touch()
    assert [(writer.communicate(timeout=240)[1], writer.returncode) for writer in writers] == [("", 0)] * 6
    with dg.DagsterInstance.from_config(str(home)) as instance:
        numbers = {str(number) for number in range(6)}
        kept = instance.run_storage.get_cursor_values(numbers)  # type: ignore[no-untyped-call]
        assert kept == dict.fromkeys(numbers, "written")
        assert instance.event_log_storage.get_concurrency_keys() == numbers


def test_a_history_opens_where_no_lock_can_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a folder stands in its place, as another user's file may; without a home there is a sentence."""
    (tmp_path / ".history.lock").mkdir()
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with opened_instance() as instance:
        assert instance.get_run_records() == []
    monkeypatch.delenv("DAGSTER_HOME")
    with pytest.raises(UserError, match="DAGSTER_HOME is not set"):
        check_history()


@pytest.mark.slow
def test_two_roots_at_once_do_not_mix(tmp_path: Path) -> None:
    """One DAGSTER_HOME: both run at the same time, each to the verdict on its own adapter."""
    places = [make_workplace(tmp_path / name) for name in ("one", "other")]
    places[1].land("more", good_row("CrossPlan21"))
    home = {"DAGSTER_HOME": str(places[0].home)}
    runs = [start(place, "-c", RUN, **home) for place in places]
    for place, run in zip(places, runs, strict=True):
        said, _ = run.communicate(timeout=900)
        assert "3 cases were evaluated" in said, said
        whole(place)
    assert [landed(place) for place in places] == [{"good.jsonl"}, {"good.jsonl", "more.jsonl"}]
    adapters = {read_manifest(Layout(UPath(place.root)).adapter).sha256 for place in places}  # type: ignore[union-attr]
    assert len(adapters) == 2
    with dg.DagsterInstance.from_config(str(places[0].home)) as instance:
        roots = {record.dagster_run.tags[ROOT_TAG] for record in instance.get_run_records()}
    assert roots == {str(place.root) for place in places}


def test_a_verdict_on_one_root_says_nothing_of_another(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    """A gate that passed there lets nothing through here, and the sentence says why and what to do."""
    here, there = (Layout(UPath(tmp_path / name)) for name in ("here", "there"))
    graph, key = defs.resolve_asset_graph(), dg.AssetKey("normalized_teacher")
    blocking = [check for check in graph.asset_check_keys if check.asset_key == key and graph.get(check).blocking]

    @dg.asset(check_specs=[dg.AssetCheckSpec(check.name, asset=key, blocking=True) for check in blocking], key=key)
    def made() -> Iterator[Any]:
        yield dg.MaterializeResult()
        for check in blocking:
            yield dg.AssetCheckResult(passed=True, check_name=check.name)

    dg.materialize([made], instance=instance, tags=root_tag(there))
    below = [dg.AssetKey("supervised_dataset")]
    others = {*graph.get(below[0]).parent_keys} - {key}
    assert gate_problem(instance, graph, key, there) is None
    refuse_below_failed_gate(instance, graph, below, others, there)
    assert made_elsewhere(instance, here, key)
    with pytest.raises(UserError) as refused:
        refuse_below_failed_gate(instance, graph, below, others, here)
    assert "has not been run on the data that normalized_teacher holds now" in str(refused.value)
    assert f"made last in another artifact root, which has the same DAGSTER_HOME. Materialize it in {here.root}" in str(
        refused.value
    )


def test_a_clock_set_back_makes_no_living_run_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's time of the machine's start moves with the clock; a process is known by the seconds since then."""
    before = process_tag()
    boot = psutil._psplatform.boot_time()  # type: ignore[attr-defined]
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: boot - 3_600)  # type: ignore[attr-defined]
    assert psutil.boot_time() == boot - 3_600
    assert process_tag() == before
    assert not executors._is_dead(before[PROCESS_TAG])


@pytest.mark.slow
def test_ten_thousand_files_cost_no_more_each_than_a_thousand(tmp_path: Path) -> None:
    """Tick and landing: memory grows no faster than the files, cursor and history do not grow with them."""
    few, many = (land_many(tmp_path / str(count), count) for count in (1_000, 10_000))
    assert many["peak"] < 12 * few["peak"]
    assert many["peak"] < 200e6
    assert many["cursor"] < 300
    assert many["history"] < 1.1 * few["history"]


def land_many(root: Path, count: int) -> dict[str, float]:
    """Bytes at most in use, of the cursor, and of Dagster's history of the landing."""
    place = Workplace(root)
    place.incoming.mkdir(parents=True)
    for number in range(count):
        place.land(str(number), '{"concept": "' + str(number) + '"}')
    artifacts = Artifacts(root=str(place.root))
    with dg.DagsterInstance.ephemeral(tempdir=str(root)) as instance:
        tracemalloc.start()
        with dg.build_sensor_context(instance=instance, resources={"artifacts": artifacts}) as context:
            tick = new_teacher_data(context)
        assert isinstance(tick, dg.SensorResult)
        keys = [dg.AssetKey("raw_teacher"), dg.AssetKey("normalized_teacher")]
        config = {"resources": {"artifacts": {"config": {"root": str(place.root)}}}, "loggers": {"console": {}}}
        job = defs.resolve_implicit_global_asset_job_def()
        run = job.execute_in_process(instance=instance, asset_selection=keys, run_config=config, raise_on_error=False)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(run.get_asset_materialization_events()) == 2
        history = sum(len(dg.serialize_value(entry)) for entry in instance.all_logs(run.run_id))
        return {"peak": peak, "cursor": len(tick.cursor or ""), "history": history}
