"""The sensor that runs the graph when teacher data lands."""

import os
import time
from pathlib import Path

import dagster as dg
import pytest

from po_assets.automation import watching
from po_assets.automation.sensors import TEACHER_FILES, new_teacher_data, teacher_files
from po_assets.storage import Artifacts, Layout


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    (tmp_path / "incoming").mkdir()
    return Artifacts(root=str(tmp_path))


def land(artifacts: Artifacts, name: str, content: str, age: float = 60) -> None:
    path = Path(str(artifacts.layout.incoming / name))
    path.write_text(content)
    os.utime(path, (time.time() - age, time.time() - age))


def tick(artifacts: Artifacts, cursor: str | None = None) -> dg.SensorResult | dg.SkipReason:
    context = dg.build_sensor_context(cursor=cursor, resources={"artifacts": artifacts})
    result = new_teacher_data(context)
    assert isinstance(result, dg.SensorResult | dg.SkipReason)
    return result


def test_new_content_launches_once(artifacts: Artifacts) -> None:
    """The second look at the same content says why it skips."""
    land(artifacts, "a.jsonl", "{}\n")
    first = tick(artifacts)
    assert len(first.run_requests or []) == 1
    (observation,) = first.asset_events
    assert (observation.asset_key, observation.metadata["files"].value) == (TEACHER_FILES, 1)
    second = tick(artifacts, first.cursor)
    assert not second.run_requests
    assert second.skip_reason.skip_message == "The content of 1 landed files has not changed."


def test_the_same_content_with_a_new_time_is_no_change(artifacts: Artifacts) -> None:
    """Landing the same data again starts nothing, and the new time is remembered."""
    land(artifacts, "a.jsonl", "{}\n")
    first = tick(artifacts)
    land(artifacts, "a.jsonl", "{}\n", age=30)
    second = tick(artifacts, first.cursor)
    assert not second.run_requests
    assert second.cursor != first.cursor


def test_content_that_comes_back_launches_again(artifacts: Artifacts) -> None:
    """A → B → A → B: each change has its own run key, because Dagster never launches a key twice."""
    cursor, keys = None, []
    for content in ("A\n", "B\n", "A\n", "B\n"):
        land(artifacts, "a.jsonl", content, age=60 - len(keys))
        result = tick(artifacts, cursor)
        keys += [request.run_key for request in result.run_requests]
        cursor = result.cursor
    assert len(set(keys)) == 4


def test_a_file_that_is_still_written_to_is_waited_for(artifacts: Artifacts) -> None:
    """Also when other files are complete: a run takes the folder as a whole."""
    land(artifacts, "a.jsonl", "{}\n")
    land(artifacts, "b.jsonl", "{", age=1)
    result = tick(artifacts)
    assert isinstance(result, dg.SkipReason)
    assert result.skip_message == "Waiting until 1 files are no longer written to: b.jsonl"


@pytest.mark.parametrize(("make", "reason"), [(False, "does not exist"), (True, "holds no *.jsonl file")])
def test_nothing_landed_is_a_reason_to_skip(tmp_path: Path, make: bool, reason: str) -> None:
    """A missing and an empty folder are told apart, and files of other names do not count."""
    if make:
        (tmp_path / "incoming").mkdir()
        (tmp_path / "incoming" / "notes.txt").write_text("x")
        (tmp_path / "incoming" / ".a.jsonl").write_text("x")
    result = tick(Artifacts(root=str(tmp_path)))
    assert isinstance(result, dg.SkipReason)
    assert reason in result.skip_message


def test_only_changed_files_are_hashed_again(artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tick over a folder of many files costs one look at each, not one read."""
    for number in range(50):
        land(artifacts, f"{number}.jsonl", f"{number}\n")
    hashed: list[str] = []
    digest = watching.file_digest
    monkeypatch.setattr(watching, "file_digest", lambda path: hashed.append(path.name) or digest(path))
    cursor = tick(artifacts).cursor
    assert len(hashed) == 50
    hashed.clear()
    land(artifacts, "7.jsonl", "changed\n", age=20)
    tick(artifacts, cursor)
    assert hashed == ["7.jsonl"]


def test_a_cursor_that_cannot_be_read_starts_afresh(artifacts: Artifacts) -> None:
    """One run too many is better than none for ever."""
    land(artifacts, "a.jsonl", "{}\n")
    assert len(tick(artifacts, "{broken").run_requests) == 1


def test_observing_gives_the_sensors_data_version(artifacts: Artifacts) -> None:
    """So that Dagster's staleness and the sensor speak of the same thing."""
    land(artifacts, "a.jsonl", "{}\n")
    (observation,) = tick(artifacts).asset_events
    with dg.instance_for_test() as instance:
        defs = dg.Definitions(assets=[teacher_files], resources={"artifacts": artifacts})
        job = defs.resolve_implicit_global_asset_job_def()
        assert job.execute_in_process(instance=instance, asset_selection=[TEACHER_FILES]).success
        record = instance.get_latest_data_version_record(TEACHER_FILES)
    seen = record.event_log_entry.dagster_event.event_specific_data.asset_observation
    assert seen.tags["dagster/data_version"] == observation.tags["dagster/data_version"]


def test_the_layout_is_what_the_sensor_watches(artifacts: Artifacts) -> None:
    """`incoming/` under the artifact root."""
    assert isinstance(artifacts.layout, Layout)
    assert artifacts.layout.incoming.name == "incoming"
