"""The sensor that runs the graph when teacher data lands."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import fsspec
import pytest
from dagster._core.events import StepMaterializationData
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.test_utils import create_run_for_test

from po_assets.automation import landing
from po_assets.automation.jobs import main_job
from po_assets.automation.landing import TEACHER_FILES, new_teacher_data, teacher_files
from po_assets.dag import Artifacts
from po_assets_tests.storage.s3_server import s3_server


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    (tmp_path / "incoming").mkdir()
    return Artifacts(root=str(tmp_path))


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path / "instance")) as instance:
        yield instance


def land(artifacts: Artifacts, name: str, content: str, age: float = 60) -> Path:
    path = Path(str(artifacts.layout.incoming / name))
    path.write_text(content)
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def tick(artifacts: Artifacts, instance: dg.DagsterInstance, cursor: str | None = None) -> Any:
    # Left open, it would stay the process's current instance until the garbage collector finds it.
    with dg.build_sensor_context(instance=instance, cursor=cursor, resources={"artifacts": artifacts}) as context:
        result = new_teacher_data(context)
    assert isinstance(result, dg.SensorResult | dg.SkipReason)
    return result


def reason(result: dg.SensorResult | dg.SkipReason) -> str:
    skip = result if isinstance(result, dg.SkipReason) else result.skip_reason
    assert skip is not None
    return str(skip.skip_message)


def test_the_same_content_with_a_new_time_is_no_change(artifacts: Artifacts, instance: dg.DagsterInstance) -> None:
    """Landing the same data again starts nothing, and the new time is remembered."""
    land(artifacts, "a.jsonl", "{}\n")
    first = tick(artifacts, instance)
    land(artifacts, "a.jsonl", "{}\n", age=30)
    second = tick(artifacts, instance, first.cursor)
    assert reason(second) == "The content of 1 landed file has not changed."
    assert second.cursor != first.cursor
    assert isinstance(tick(artifacts, instance, second.cursor), dg.SkipReason)


def test_content_that_comes_back_launches_again(artifacts: Artifacts, instance: dg.DagsterInstance) -> None:
    """A → B → A → B: each change has its own run key, because Dagster never launches a key twice."""
    cursor, keys = None, []
    for content in ("A\n", "B\n", "A\n", "B\n"):
        land(artifacts, "a.jsonl", content, age=60 - len(keys))
        result = tick(artifacts, instance, cursor)
        keys += [request.run_key for request in result.run_requests]
        cursor = result.cursor
    assert len(set(keys)) == 4


def test_a_removed_and_a_renamed_file_are_changes(artifacts: Artifacts, instance: dg.DagsterInstance) -> None:
    """The ledger names files; a row under another name is another row."""
    path = land(artifacts, "a.jsonl", "A\n")
    land(artifacts, "b.jsonl", "B\n")
    cursor = tick(artifacts, instance).cursor
    path.rename(path.with_name("c.jsonl"))
    second = tick(artifacts, instance, cursor)
    assert len(second.run_requests) == 1
    path.with_name("c.jsonl").unlink()
    assert len(tick(artifacts, instance, second.cursor).run_requests) == 1


def test_a_file_that_is_still_written_to_is_waited_for(artifacts: Artifacts, instance: dg.DagsterInstance) -> None:
    """Also when other files are complete: a run takes the folder as a whole. It grows, it rests, it is taken."""
    land(artifacts, "a.jsonl", "{}\n")
    for content in ("{", '{"a"', '{"a": 1}'):
        land(artifacts, "b.jsonl", content, age=1)
        assert reason(tick(artifacts, instance)) == "Waiting until 1 file is no longer written to: b.jsonl"
    land(artifacts, "b.jsonl", '{"a": 1}', age=landing.SETTLE_SECONDS)
    assert len(tick(artifacts, instance).run_requests) == 1


def test_a_file_from_the_future_is_taken_once_it_rests(
    artifacts: Artifacts, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that is an hour ahead where the file comes from does not keep it waiting for an hour."""
    land(artifacts, "a.jsonl", "{}\n", age=-3600)
    assert reason(tick(artifacts, instance)).startswith("Waiting until 1 file")
    now = time.time() + landing.SETTLE_SECONDS + 1
    monkeypatch.setattr(landing.time, "time", lambda: now)
    assert len(tick(artifacts, instance).run_requests) == 1


def test_a_clock_set_back_keeps_no_file_waiting(
    artifacts: Artifacts, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was first seen an hour "later" is taken when it has rested from now on."""
    land(artifacts, "a.jsonl", "{}\n", age=0)
    assert reason(tick(artifacts, instance)).startswith("Waiting until 1 file")
    real = time.time() - 3_600
    monkeypatch.setattr(landing.time, "time", lambda: real)
    assert reason(tick(artifacts, instance)).startswith("Waiting until 1 file")
    monkeypatch.setattr(landing.time, "time", lambda: real + landing.SETTLE_SECONDS + 1)
    assert len(tick(artifacts, instance).run_requests) == 1


def test_nothing_landed_is_a_reason_to_skip(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    """A missing and an empty folder are told apart; folders and files of other names do not count, whatever is inside.

    What is there and not taken in is named.
    """
    place = Artifacts(root=str(tmp_path))
    assert "does not exist" in reason(tick(place, instance))
    (tmp_path / "incoming" / "folder.jsonl").mkdir(parents=True)
    (tmp_path / "incoming" / "folder.jsonl" / "a.jsonl").write_text("x")
    (tmp_path / "incoming" / "notes.txt").write_text("x")
    (tmp_path / "incoming" / ".a.jsonl").write_text("x")
    said = reason(tick(place, instance))
    assert "holds no *.jsonl file" in said
    assert "'folder.jsonl' is a folder" in said
    assert "'notes.txt' does not end in .jsonl" in said


def test_links_are_watched_as_raw_teacher_reads_them(artifacts: Artifacts, instance: dg.DagsterInstance) -> None:
    """A link to a file is its content, also when that changes where it lies; a link to nothing is not taken in."""
    incoming = Path(str(artifacts.layout.incoming))
    linked = land(artifacts, "../elsewhere", "A\n")
    (incoming / "link.jsonl").symlink_to(linked)
    (incoming / "broken.jsonl").symlink_to(incoming / "nowhere")
    first = tick(artifacts, instance)
    assert first.asset_events[0].metadata["files"].value == 1
    assert reason(tick(artifacts, instance, first.cursor)) == "The content of 1 landed file has not changed."
    land(artifacts, "../elsewhere", "B\n", age=30)
    assert len(tick(artifacts, instance, first.cursor).run_requests) == 1
    taken_in(artifacts, instance, main_job.name, None)
    assert "has taken in 1 landed file" in reason(tick(artifacts, instance, first.cursor))


def test_what_cannot_be_read_is_a_reason_to_skip(
    artifacts: Artifacts, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file gives its reason and the way out, and costs no second reading of the others; so does observing."""
    land(artifacts, "a.jsonl", "A\n")
    land(artifacts, "b.jsonl", "B\n")
    digest, read = landing.file_digest, []

    def locked(path: Any) -> str:
        if path.name == "b.jsonl":
            raise PermissionError(13, "Permission denied", str(path))
        read.append(path.name)
        return digest(path)

    monkeypatch.setattr(landing, "file_digest", locked)
    expected = (
        "1 landed file cannot be read: b.jsonl (Permission denied). "
        "Make it readable, or take it out of the landing folder."
    )
    assert reason(tick(artifacts, instance)) == expected
    assert reason(tick(artifacts, instance)) == expected
    assert read == ["a.jsonl"]
    with pytest.raises(dg.Failure, match="1 landed file cannot be read"):
        observe(artifacts, instance)
    monkeypatch.setattr(landing, "file_digest", digest)
    assert len(tick(artifacts, instance).run_requests) == 1


@pytest.mark.parametrize("locked", ["is_dir", "ls"])
def test_a_folder_that_cannot_be_listed_is_a_reason_to_skip(
    artifacts: Artifacts, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, locked: str
) -> None:
    """The folder itself, or one above it."""

    def denied(*_arguments: Any, **_options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    incoming = artifacts.layout.incoming
    monkeypatch.setattr(type(incoming) if locked == "is_dir" else type(incoming.fs), locked, denied)
    said = reason(tick(artifacts, instance))
    assert "Permission denied. Let this user read it" in said
    with pytest.raises(dg.Failure, match="Let this user read it"):
        observe(artifacts, instance)


def observe(artifacts: Artifacts, instance: dg.DagsterInstance) -> None:
    """What the button Observe does."""
    defs = dg.Definitions(assets=[teacher_files], resources={"artifacts": artifacts})
    job = defs.resolve_implicit_global_asset_job_def()
    job.execute_in_process(instance=instance, asset_selection=[TEACHER_FILES])


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read, as they are read."""
    names: list[str] = []
    digest = landing.file_digest
    monkeypatch.setattr(landing, "file_digest", lambda path: names.append(path.name) or digest(path))
    return names


def test_a_thousand_files_are_read_once(artifacts: Artifacts, instance: dg.DagsterInstance, hashed: list[str]) -> None:
    """The first tick reads all, the next none, a change one; and the cursor, kept with every tick, stays small."""
    for number in range(1_000):
        land(artifacts, f"{number}.jsonl", f"{number}\n")
    first = tick(artifacts, instance)
    assert len(hashed) == 1_000
    assert len(first.cursor) < 300
    hashed.clear()
    assert "1,000 landed files" in reason(tick(artifacts, instance, first.cursor))
    assert hashed == []
    land(artifacts, "7.jsonl", "changed\n", age=20)
    assert len(tick(artifacts, instance, first.cursor).run_requests) == 1
    assert hashed == ["7.jsonl"]


def test_a_lost_memory_costs_reading_and_no_run(
    artifacts: Artifacts, instance: dg.DagsterInstance, hashed: list[str]
) -> None:
    """What is known of each file lies beside the instance; what decides lies in the cursor."""
    land(artifacts, "a.jsonl", "A\n")
    cursor = tick(artifacts, instance).cursor
    (memory,) = Path(instance.storage_directory()).glob("teacher_files-*.json")
    memory.write_text("{broken")
    land(artifacts, "a.jsonl", "A\n", age=20)
    hashed.clear()
    assert reason(tick(artifacts, instance, cursor)) == "The content of 1 landed file has not changed."
    assert hashed == ["a.jsonl"]


def test_a_reset_sensor_launches_under_a_key_of_its_own(artifacts: Artifacts, instance: dg.DagsterInstance) -> None:
    """A cursor that is gone or cannot be read: one run too many is better than none for ever."""
    land(artifacts, "a.jsonl", "{}\n")
    first, second = tick(artifacts, instance), None
    time.sleep(1.1)
    second = tick(artifacts, instance, "{broken")
    assert len({request.run_key for result in (first, second) for request in result.run_requests}) == 2


def taken_in(artifacts: Artifacts, instance: dg.DagsterInstance, job: str, selection: list[dg.AssetKey] | None) -> None:
    """Run raw_teacher under a job of this name."""
    from po_assets.dag import JsonlIOManager
    from po_assets.intake.assets import raw_teacher

    defs = dg.Definitions(
        assets=[teacher_files, raw_teacher],
        jobs=[dg.define_asset_job(job, selection=["raw_teacher"])],
        resources={"artifacts": artifacts, "io_manager": JsonlIOManager(artifacts=artifacts)},
    )
    job_def = defs.resolve_job_def(job)
    assert job_def.execute_in_process(instance=instance, asset_selection=selection).success


def test_what_make_run_took_in_is_not_run_again(artifacts: Artifacts, instance: dg.DagsterInstance) -> None:
    """Whether it happened before the first tick or between two; what is landed afterwards is run."""
    land(artifacts, "a.jsonl", "A\n")
    taken_in(artifacts, instance, main_job.name, None)
    first = tick(artifacts, instance)
    assert reason(first).endswith("has taken in 1 landed file with this content already.")
    land(artifacts, "b.jsonl", "B\n")
    taken_in(artifacts, instance, main_job.name, None)
    second = tick(artifacts, instance, first.cursor)
    assert reason(second).endswith("has taken in 2 landed files with this content already.")
    land(artifacts, "b.jsonl", "C\n", age=40)
    assert len(tick(artifacts, instance, second.cursor).run_requests) == 1


def queue(instance: dg.DagsterInstance, **run: Any) -> dg.DagsterRun:
    """A run that waits for its turn."""
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("po_assets"), "__repository__")
    origin = RemoteJobOrigin(repository, main_job.name)
    run = {"job_name": main_job.name, "remote_job_origin": origin, "status": dg.DagsterRunStatus.QUEUED, **run}
    return create_run_for_test(instance, **run)


def test_landings_before_a_run_has_read_wait_for_it(artifacts: Artifacts, instance: dg.DagsterInstance) -> None:
    """A queued run reads the folder when it starts: three landings are one run, and nothing is asked for twice."""
    land(artifacts, "a.jsonl", "A\n")
    cursor = tick(artifacts, instance).cursor
    queued = queue(instance)
    for name in ("b.jsonl", "c.jsonl"):
        land(artifacts, name, "more\n")
        result = tick(artifacts, instance, cursor)
        assert isinstance(result, dg.SkipReason), "the cursor would move"
        assert reason(result) == f"Run {queued.run_id[:8]}, which has not started, will take this in."
    instance.report_dagster_event(dg.DagsterEvent(dg.DagsterEventType.RUN_START.value, main_job.name), queued.run_id)
    assert reason(tick(artifacts, instance, cursor)) == (
        f"Run {queued.run_id[:8]} is taking in what has landed; waiting to see whether this is among it."
    )
    taken_in(artifacts, instance, main_job.name, None)
    assert "has taken in 3 landed files" in reason(tick(artifacts, instance, cursor))


@pytest.mark.parametrize(
    "other",
    [
        {"status": dg.DagsterRunStatus.CANCELED},
        {"asset_selection": frozenset({dg.AssetKey("raw_teacher")})},
        {"job_name": "ask_teacher"},
        {"step_keys_to_execute": ["lora_adapter"]},
    ],
)
def test_a_run_that_will_not_run_the_graph_on_it_is_not_waited_for(
    artifacts: Artifacts, instance: dg.DagsterInstance, other: dict[str, Any]
) -> None:
    """One that was ended in the queue, of a part, of another job, and one repeated from a later step."""
    land(artifacts, "a.jsonl", "A\n")
    queue(instance, **other)
    assert len(tick(artifacts, instance).run_requests) == 1


def test_a_run_that_has_read_is_not_waited_for(artifacts: Artifacts, instance: dg.DagsterInstance) -> None:
    """It may train for hours; what lands meanwhile is queued behind it."""
    land(artifacts, "a.jsonl", "A\n")
    first = tick(artifacts, instance)
    running = create_run_for_test(instance, job_name=main_job.name, status=dg.DagsterRunStatus.STARTED)
    land(artifacts, "b.jsonl", "B\n")
    assert isinstance(tick(artifacts, instance, first.cursor), dg.SkipReason)
    instance.report_dagster_event(
        dg.DagsterEvent(
            dg.DagsterEventType.ASSET_MATERIALIZATION.value,
            main_job.name,
            event_specific_data=StepMaterializationData(dg.AssetMaterialization("raw_teacher")),
        ),
        running.run_id,
    )
    assert len(tick(artifacts, instance, first.cursor).run_requests) == 1


def test_a_run_of_raw_teacher_alone_does_not_count(artifacts: Artifacts, instance: dg.DagsterInstance) -> None:
    """It took the files in, and nothing after it was made."""
    land(artifacts, "a.jsonl", "A\n")
    taken_in(artifacts, instance, main_job.name, [dg.AssetKey("raw_teacher")])
    assert len(tick(artifacts, instance).run_requests) == 1


def test_a_failed_run_is_not_repeated_until_the_data_changes(
    artifacts: Artifacts, instance: dg.DagsterInstance
) -> None:
    """The sensor looks at content alone: the same content would fail again, other content is tried."""
    land(artifacts, "a.jsonl", "bad\n")
    first = tick(artifacts, instance)
    tags = {"dagster/run_key": first.run_requests[0].run_key}
    instance.create_run_for_job(dg.job(name="failed")(lambda: None), status=dg.DagsterRunStatus.FAILURE, tags=tags)
    assert reason(tick(artifacts, instance, first.cursor)) == "The content of 1 landed file has not changed."
    land(artifacts, "a.jsonl", "good\n", age=30)
    assert len(tick(artifacts, instance, first.cursor).run_requests) == 1


def test_observing_gives_the_sensors_data_version(artifacts: Artifacts, instance: dg.DagsterInstance) -> None:
    """So that Dagster's staleness and the sensor speak of the same thing."""
    land(artifacts, "a.jsonl", "{}\n")
    (observation,) = tick(artifacts, instance).asset_events
    observe(artifacts, instance)
    (record,) = instance.fetch_observations(TEACHER_FILES, limit=1).records
    assert record.asset_observation is not None
    assert record.asset_observation.tags["dagster/data_version"] == observation.tags["dagster/data_version"]


@pytest.mark.parametrize("kind", ["folder", "memory", "bucket"])
def test_a_landing_is_run_once_wherever_it_lies(
    tmp_path: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Missing, empty of rows, being written, landed, unchanged, changed; a long-lived process sees what others land."""
    with s3_server() if kind == "bucket" else contextlib.nullcontext() as bucket:
        fsspec.filesystem("memory").store.clear()
        root = {"folder": str(tmp_path / "po"), "memory": "memory://watched", "bucket": f"{bucket}/po"}[kind]
        artifacts = Artifacts(root=root)
        incoming = artifacts.layout.incoming
        assert incoming.name == "incoming"
        assert "does not exist" in reason(tick(artifacts, instance))
        if kind == "folder":
            incoming.mkdir(parents=True)
        incoming.joinpath("notes.txt").write_text("x")
        assert "holds no *.jsonl file" in reason(tick(artifacts, instance))
        incoming.joinpath("a.jsonl").write_text("A\n")
        assert reason(tick(artifacts, instance)).startswith("Waiting until 1 file")
        real = time.time
        monkeypatch.setattr(landing.time, "time", lambda: real() + landing.SETTLE_SECONDS + 1)
        first = tick(artifacts, instance)
        assert len(first.run_requests) == 1
        (observation,) = first.asset_events
        assert (observation.asset_key, observation.metadata["files"].value) == (TEACHER_FILES, 1)
        assert observation.metadata["bytes"].value == 2
        assert reason(tick(artifacts, instance, first.cursor)) == "The content of 1 landed file has not changed."
        incoming.joinpath("a.jsonl").write_text("B\n")
        assert len(tick(artifacts, instance, first.cursor).run_requests) == 1
