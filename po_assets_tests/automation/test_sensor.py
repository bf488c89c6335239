"""The sensor that runs the graph when teacher data lands."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import fsspec
import pytest
from dagster._core.events import StepMaterializationData
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.test_utils import create_run_for_test

from po_assets.automation import landing as sensor
from po_assets.automation.jobs import main_job
from po_assets.automation.landing import TEACHER_FILES, new_teacher_data, teacher_files
from po_assets.dag import Artifacts, JsonlIOManager
from po_assets.intake.assets import raw_teacher
from po_assets_tests.storage.s3_server import s3_server


@dataclass
class Landing:
    """A landing folder, and the sensor that watches it."""

    artifacts: Artifacts
    instance: dg.DagsterInstance

    @property
    def incoming(self) -> Path:
        """The folder."""
        return Path(str(self.artifacts.layout.incoming))

    def land(self, name: str, content: str, age: float = 60) -> Path:
        """A file whose last change is `age` seconds ago."""
        path = self.incoming / name
        path.write_text(content)
        os.utime(path, (time.time() - age, time.time() - age))
        return path

    def tick(self, cursor: str | None = None) -> Any:
        """What the sensor answers."""
        # Left open, it would stay the process's current instance until the garbage collector finds it.
        resources = {"artifacts": self.artifacts}
        with dg.build_sensor_context(instance=self.instance, cursor=cursor, resources=resources) as context:
            result = new_teacher_data(context)
        assert isinstance(result, dg.SensorResult | dg.SkipReason)
        return result

    def runs(self, cursor: str | None = None) -> int:
        """How many runs a tick asks for."""
        return len(self.tick(cursor).run_requests)

    def says(self, cursor: str | None = None) -> str:
        """Why a tick asks for none."""
        return reason(self.tick(cursor))

    def observe(self) -> None:
        """What the button Observe does."""
        defs = dg.Definitions(assets=[teacher_files], resources={"artifacts": self.artifacts})
        job = defs.resolve_implicit_global_asset_job_def()
        job.execute_in_process(instance=self.instance, asset_selection=[TEACHER_FILES])

    def take_in(self, selection: list[dg.AssetKey] | None = None) -> None:
        """Run raw_teacher under the main job's name."""
        defs = dg.Definitions(
            assets=[teacher_files, raw_teacher],
            jobs=[dg.define_asset_job(main_job.name, selection=["raw_teacher"])],
            resources={"artifacts": self.artifacts, "io_manager": JsonlIOManager(artifacts=self.artifacts)},
        )
        job = defs.resolve_job_def(main_job.name)
        assert job.execute_in_process(instance=self.instance, asset_selection=selection).success

    def queue(self, **run: Any) -> dg.DagsterRun:
        """A run that waits for its turn."""
        repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("po_assets"), "__repository__")
        origin = RemoteJobOrigin(repository, main_job.name)
        run = {"job_name": main_job.name, "remote_job_origin": origin, "status": dg.DagsterRunStatus.QUEUED, **run}
        return create_run_for_test(self.instance, **run)

    def happened(self, kind: dg.DagsterEventType, run: dg.DagsterRun, data: Any = None) -> None:
        """An event of a run."""
        self.instance.report_dagster_event(
            dg.DagsterEvent(kind.value, main_job.name, event_specific_data=data), run.run_id
        )


def reason(result: dg.SensorResult | dg.SkipReason) -> str:
    skip = result if isinstance(result, dg.SkipReason) else result.skip_reason
    assert skip is not None
    return str(skip.skip_message)


UNCHANGED = "The content of 1 landed file has not changed."


@pytest.fixture
def landing(tmp_path: Path) -> Iterator[Landing]:
    (tmp_path / "incoming").mkdir()
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path / "instance")) as instance:
        yield Landing(Artifacts(root=str(tmp_path)), instance)


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the sensor's clock, in seconds from now."""
    now = time.time()
    return lambda seconds: monkeypatch.setattr(sensor.time, "time", lambda: now + seconds)


def test_the_same_content_with_a_new_time_is_no_change(landing: Landing) -> None:
    """Landing the same data again starts nothing, and the new time is remembered."""
    landing.land("a.jsonl", "{}\n")
    first = landing.tick()
    landing.land("a.jsonl", "{}\n", age=30)
    second = landing.tick(first.cursor)
    assert reason(second) == UNCHANGED
    assert second.cursor != first.cursor
    assert isinstance(landing.tick(second.cursor), dg.SkipReason)


def test_content_that_comes_back_launches_again(landing: Landing) -> None:
    """A → B → A → B: each change has its own run key, because Dagster never launches a key twice."""
    cursor, keys = None, []
    for content in ("A\n", "B\n", "A\n", "B\n"):
        landing.land("a.jsonl", content, age=60 - len(keys))
        result = landing.tick(cursor)
        keys += [request.run_key for request in result.run_requests]
        cursor = result.cursor
    assert len(set(keys)) == 4


def test_a_removed_and_a_renamed_file_are_changes(landing: Landing) -> None:
    """The ledger names files; a row under another name is another row."""
    path = landing.land("a.jsonl", "A\n")
    landing.land("b.jsonl", "B\n")
    cursor = landing.tick().cursor
    renamed = path.rename(path.with_name("c.jsonl"))
    second = landing.tick(cursor)
    assert len(second.run_requests) == 1
    renamed.unlink()
    assert landing.runs(second.cursor) == 1


def test_a_file_that_is_still_written_to_is_waited_for(landing: Landing) -> None:
    """Also when other files are complete: a run takes the folder as a whole. It grows, it rests, it is taken."""
    landing.land("a.jsonl", "{}\n")
    for content in ("{", '{"a"', '{"a": 1}'):
        landing.land("b.jsonl", content, age=1)
        assert landing.says() == "Waiting until 1 file is no longer written to: b.jsonl"
    landing.land("b.jsonl", '{"a": 1}', age=sensor.SETTLE_SECONDS)
    assert landing.runs() == 1


@pytest.mark.parametrize(
    ("age", "clock"), [(-3600, 0), (0, -3600)], ids=["a file from the future", "a clock that was set back"]
)
def test_a_wrong_clock_keeps_no_file_waiting(landing: Landing, at: Any, age: float, clock: float) -> None:
    """An hour "later" than now, where the file comes from or when it was first seen: taken when it rests from now on."""
    landing.land("a.jsonl", "{}\n", age=age)
    assert landing.says().startswith("Waiting until 1 file")
    at(clock)
    assert landing.says().startswith("Waiting until 1 file")
    at(clock + sensor.SETTLE_SECONDS + 1)
    assert landing.runs() == 1


def test_what_is_not_taken_in_is_named(landing: Landing) -> None:
    """Folders and files of other names do not count, whatever is inside."""
    (landing.incoming / "folder.jsonl").mkdir()
    for name in ("folder.jsonl/a.jsonl", "notes.txt", ".a.jsonl"):
        (landing.incoming / name).write_text("x")
    said = landing.says()
    assert "holds no *.jsonl file" in said
    assert "'folder.jsonl' is a folder" in said
    assert "'notes.txt' does not end in .jsonl" in said


def test_links_are_watched_as_raw_teacher_reads_them(landing: Landing) -> None:
    """A link to a file is its content, also when that changes where it lies; a link to nothing is not taken in."""
    linked = landing.land("../elsewhere", "A\n")
    (landing.incoming / "link.jsonl").symlink_to(linked)
    (landing.incoming / "broken.jsonl").symlink_to(landing.incoming / "nowhere")
    first = landing.tick()
    assert first.asset_events[0].metadata["files"].value == 1
    assert landing.says(first.cursor) == UNCHANGED
    landing.land("../elsewhere", "B\n", age=30)
    assert landing.runs(first.cursor) == 1
    landing.take_in()
    assert "has taken in 1 landed file" in landing.says(first.cursor)


def test_what_cannot_be_read_is_a_reason_to_skip(landing: Landing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file gives its reason and the way out, and costs no second reading of the others; so does observing."""
    landing.land("a.jsonl", "A\n")
    landing.land("b.jsonl", "B\n")
    digest, read = sensor.file_digest, []

    def locked(path: Any) -> str:
        if path.name == "b.jsonl":
            raise PermissionError(13, "Permission denied", str(path))
        read.append(path.name)
        return digest(path)

    monkeypatch.setattr(sensor, "file_digest", locked)
    expected = (
        "1 landed file cannot be read: b.jsonl (Permission denied). "
        "Make it readable, or take it out of the landing folder."
    )
    assert [landing.says(), landing.says()] == [expected, expected]
    assert read == ["a.jsonl"]
    with pytest.raises(dg.Failure, match="1 landed file cannot be read"):
        landing.observe()
    monkeypatch.setattr(sensor, "file_digest", digest)
    assert landing.runs() == 1


@pytest.mark.parametrize("locked", ["is_dir", "ls"])
def test_a_folder_that_cannot_be_listed_is_a_reason_to_skip(
    landing: Landing, monkeypatch: pytest.MonkeyPatch, locked: str
) -> None:
    """The folder itself, or one above it."""

    def denied(*_arguments: Any, **_options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    incoming = landing.artifacts.layout.incoming
    monkeypatch.setattr(type(incoming) if locked == "is_dir" else type(incoming.fs), locked, denied)
    assert "Permission denied. Let this user read it" in landing.says()
    with pytest.raises(dg.Failure, match="Let this user read it"):
        landing.observe()


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read, as they are read."""
    names: list[str] = []
    digest = sensor.file_digest
    monkeypatch.setattr(sensor, "file_digest", lambda path: names.append(path.name) or digest(path))
    return names


def test_a_thousand_files_are_read_once(landing: Landing, hashed: list[str]) -> None:
    """The first tick reads all, the next none, a change one; and the cursor, kept with every tick, stays small."""
    for number in range(1_000):
        landing.land(f"{number}.jsonl", f"{number}\n")
    first = landing.tick()
    assert len(hashed) == 1_000
    assert len(first.cursor) < 300
    hashed.clear()
    assert "1,000 landed files" in landing.says(first.cursor)
    assert hashed == []
    landing.land("7.jsonl", "changed\n", age=20)
    assert landing.runs(first.cursor) == 1
    assert hashed == ["7.jsonl"]


def test_a_lost_memory_costs_reading_and_no_run(landing: Landing, hashed: list[str]) -> None:
    """What is known of each file lies beside the instance; what decides lies in the cursor."""
    landing.land("a.jsonl", "A\n")
    cursor = landing.tick().cursor
    (memory,) = Path(landing.instance.storage_directory()).glob("teacher_files-*.json")
    memory.write_text("{broken")
    landing.land("a.jsonl", "A\n", age=20)
    hashed.clear()
    assert landing.says(cursor) == UNCHANGED
    assert hashed == ["a.jsonl"]


def test_a_reset_sensor_launches_under_a_key_of_its_own(landing: Landing, at: Any) -> None:
    """A cursor that is gone or cannot be read: one run too many is better than none for ever."""
    landing.land("a.jsonl", "{}\n")
    first = landing.tick()
    at(60)
    second = landing.tick("{broken")
    assert len({request.run_key for result in (first, second) for request in result.run_requests}) == 2


def test_what_make_run_took_in_is_not_run_again(landing: Landing) -> None:
    """Whether it happened before the first tick or between two; what is landed afterwards is run."""
    landing.land("a.jsonl", "A\n")
    landing.take_in()
    first = landing.tick()
    assert reason(first).endswith("has taken in 1 landed file with this content already.")
    landing.land("b.jsonl", "B\n")
    landing.take_in()
    second = landing.tick(first.cursor)
    assert reason(second).endswith("has taken in 2 landed files with this content already.")
    landing.land("b.jsonl", "C\n", age=40)
    assert landing.runs(second.cursor) == 1


def test_landings_before_a_run_has_read_wait_for_it(landing: Landing) -> None:
    """A queued run reads the folder when it starts: three landings are one run, and nothing is asked for twice."""
    landing.land("a.jsonl", "A\n")
    cursor = landing.tick().cursor
    queued = landing.queue()
    for name in ("b.jsonl", "c.jsonl"):
        landing.land(name, "more\n")
        result = landing.tick(cursor)
        assert isinstance(result, dg.SkipReason), "the cursor would move"
        assert reason(result) == f"Run {queued.run_id[:8]}, which has not started, will take this in."
    landing.happened(dg.DagsterEventType.RUN_START, queued)
    assert landing.says(cursor) == (
        f"Run {queued.run_id[:8]} is taking in what has landed; waiting to see whether this is among it."
    )
    landing.take_in()
    assert "has taken in 3 landed files" in landing.says(cursor)


@pytest.mark.parametrize(
    "other",
    [
        {"status": dg.DagsterRunStatus.CANCELED},
        {"asset_selection": frozenset({dg.AssetKey("raw_teacher")})},
        {"job_name": "ask_teacher"},
        {"step_keys_to_execute": ["lora_adapter"]},
    ],
    ids=["ended in the queue", "of a part", "of another job", "repeated from a later step"],
)
def test_a_run_that_will_not_run_the_graph_on_it_is_not_waited_for(landing: Landing, other: dict[str, Any]) -> None:
    """What landed is run by another."""
    landing.land("a.jsonl", "A\n")
    landing.queue(**other)
    assert landing.runs() == 1


def test_a_run_that_has_read_is_not_waited_for(landing: Landing) -> None:
    """It may train for hours; what lands meanwhile is queued behind it."""
    landing.land("a.jsonl", "A\n")
    first = landing.tick()
    running = landing.queue(status=dg.DagsterRunStatus.STARTED, remote_job_origin=None)
    landing.land("b.jsonl", "B\n")
    assert isinstance(landing.tick(first.cursor), dg.SkipReason)
    data = StepMaterializationData(dg.AssetMaterialization("raw_teacher"))
    landing.happened(dg.DagsterEventType.ASSET_MATERIALIZATION, running, data)
    assert landing.runs(first.cursor) == 1


def test_a_run_of_raw_teacher_alone_does_not_count(landing: Landing) -> None:
    """It took the files in, and nothing after it was made."""
    landing.land("a.jsonl", "A\n")
    landing.take_in([dg.AssetKey("raw_teacher")])
    assert landing.runs() == 1


def test_a_failed_run_is_not_repeated_until_the_data_changes(landing: Landing) -> None:
    """The sensor looks at content alone: the same content would fail again, other content is tried."""
    landing.land("a.jsonl", "bad\n")
    first = landing.tick()
    tags = {"dagster/run_key": first.run_requests[0].run_key}
    failed = dg.job(name="failed")(lambda: None)
    landing.instance.create_run_for_job(failed, status=dg.DagsterRunStatus.FAILURE, tags=tags)
    assert landing.says(first.cursor) == UNCHANGED
    landing.land("a.jsonl", "good\n", age=30)
    assert landing.runs(first.cursor) == 1


def test_observing_gives_the_sensors_data_version(landing: Landing) -> None:
    """So that Dagster's staleness and the sensor speak of the same thing."""
    landing.land("a.jsonl", "{}\n")
    (observation,) = landing.tick().asset_events
    landing.observe()
    (record,) = landing.instance.fetch_observations(TEACHER_FILES, limit=1).records
    assert record.asset_observation is not None
    assert record.asset_observation.tags["dagster/data_version"] == observation.tags["dagster/data_version"]


@pytest.mark.parametrize("kind", ["folder", "memory", "bucket"])
def test_a_landing_is_run_once_wherever_it_lies(tmp_path: Path, landing: Landing, at: Any, kind: str) -> None:
    """Missing, empty of rows, being written, landed, unchanged, changed; a long-lived process sees what others land."""
    with s3_server() if kind == "bucket" else contextlib.nullcontext() as bucket:
        fsspec.filesystem("memory").store.clear()
        root = {"folder": str(tmp_path / "po"), "memory": "memory://watched", "bucket": f"{bucket}/po"}[kind]
        landing = Landing(Artifacts(root=root), landing.instance)
        incoming = landing.artifacts.layout.incoming
        assert incoming.name == "incoming"
        assert "does not exist" in landing.says()
        if kind == "folder":
            incoming.mkdir(parents=True)
        incoming.joinpath("notes.txt").write_text("x")
        assert "holds no *.jsonl file" in landing.says()
        incoming.joinpath("a.jsonl").write_text("A\n")
        assert landing.says().startswith("Waiting until 1 file")
        at(sensor.SETTLE_SECONDS + 60)
        first = landing.tick()
        assert len(first.run_requests) == 1
        (observation,) = first.asset_events
        assert (observation.asset_key, observation.metadata["files"].value) == (TEACHER_FILES, 1)
        assert observation.metadata["bytes"].value == 2
        assert landing.says(first.cursor) == UNCHANGED
        incoming.joinpath("a.jsonl").write_text("B\n")
        at(2 * sensor.SETTLE_SECONDS + 600)
        assert landing.runs(first.cursor) == 1
