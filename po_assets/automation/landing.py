"""The sensor that runs the graph when teacher data lands, and `teacher_files`, the landing folder as Dagster sees it.

The folder is looked at cheaply and often: one listing a scan; a file is read again only when it changed. Two memories:
the small `Position` travels in the sensor's cursor, which Dagster keeps with every tick; what is known of each file is
kept in a file beside the instance (`Cache`), since ten thousand digests with every tick would fill its database. A lost
cache costs one reading of all.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg
from pydantic import BaseModel
from upath import UPath

from po_assets.automation.catch_up import works_elsewhere
from po_assets.automation.jobs import main_job
from po_assets.dag import Artifacts, user_errors_fail_the_step
from po_assets.errors import UserError
from po_assets.intake.landing import list_landing, sources_of
from po_assets.storage import Layout, digest_of, file_digest, replace_file
from po_assets.text import amount, verb

TEACHER_FILES = dg.AssetKey("teacher_files")
SETTLE_SECONDS = 10.0
"""A file whose last change is younger may still be being written."""

_TAKEN_IN_BY = dg.AssetKey("raw_teacher")
_NAMED_FILES = 5
_NOT_STARTED = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING]
_TIME_KEYS = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
"""What file systems of fsspec call the time of the last change."""


class Stat(NamedTuple):
    """What a listing says of a file; it changes whenever the content does.

    Size in bytes, time of the last change in seconds, and an object store's own tag of the content.
    """

    size: int
    modified: float
    tag: str = ""


class Cache(BaseModel):
    """What earlier scans found out: each file's stat and sha256 (hex), and since when a young one looks as it does."""

    files: dict[str, tuple[Stat, str]] = {}
    young: dict[str, tuple[Stat, float]] = {}

    @classmethod
    def read(cls, path: Path) -> "Cache":
        """The cache of the last scan; empty where there is none or it cannot be read."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            return cls()


class Position(BaseModel):
    """How far the sensor is: digests (sha256, hex) of the last listing and of names and contents, number of changes."""

    listing: str = ""
    content: str = ""
    changes: int = 0

    @classmethod
    def of(cls, cursor: str | None) -> "Position | None":
        """The position in a cursor; None without one, and for one that cannot be read."""
        try:
            return cls.model_validate_json(cursor or "")
        except ValueError:
            return None


@dataclass(frozen=True)
class Scan:
    """One look into the folder: sha256 (hex) of each file by name, and which are too young to be taken as complete."""

    files: dict[str, str]
    unsettled: list[str]
    unreadable: dict[str, str]
    """Why each of those could not be read that were listed as if they could."""
    size: int
    """Bytes of all files."""

    @property
    def content(self) -> str:
        """sha256 (hex) over names and contents; times do not count."""
        return digest_of(self.files)

    @property
    def metadata(self) -> dict[str, int]:
        """What the UI shows of it."""
        return {"files": len(self.files), "bytes": self.size}

    @property
    def fault(self) -> str:
        """What cannot be read, and the way out; empty when all can."""
        if not self.unreadable:
            return ""
        return (
            f"{amount(len(self.unreadable), 'landed file')} cannot be read: "
            f"{_named(f'{name} ({why})' for name, why in self.unreadable.items())}. "
            "Make it readable, or take it out of the landing folder."
        )


def listing(incoming: UPath) -> dict[str, Stat]:
    """The landed files by name, from one listing of the folder: those that `raw_teacher` takes in.

    Raises:
        UserError: the folder is missing, cannot be listed or holds no `*.jsonl` file that can be read.
    """
    try:
        return {name: _stat(entry) for name, entry in list_landing(incoming).taken.items()}
    except OSError as error:
        raise UserError(
            f"The landing folder {str(incoming)!r} cannot be reached: {error.strerror or error}. Let this user read it "
            "and enter the folders above it."
        ) from error


def scan(incoming: UPath, found: dict[str, Stat], cache: Cache, settle_seconds: float = SETTLE_SECONDS) -> Scan:
    """Read what changed since `cache` was written, which is brought up to date.

    A file is complete when its last change, or the first scan that saw it as it is now, is `settle_seconds` ago. (Of a
    file with a time in the future, copied from a machine whose clock is wrong, only the second can be told.)
    """
    now = time.time()
    young: dict[str, tuple[Stat, float]] = {}
    known: dict[str, tuple[Stat, str]] = {}
    unreadable: dict[str, str] = {}
    for name, stat in found.items():
        before = cache.files.get(name)
        if before and before[0] == stat:
            known[name] = before
            continue
        first = cache.young.get(name)
        since = min(first[1], now) if first and first[0] == stat else now  # the clock may have been set back
        if now - stat.modified >= settle_seconds or now - since >= settle_seconds:
            try:
                known[name] = (stat, file_digest(incoming / name))
            except OSError as error:
                unreadable[name] = str(error.strerror or error)
        else:
            young[name] = (stat, since)
    # A file that is being written over keeps what was known of it: it may turn out to be the same again.
    cache.files = {name: entry for name, entry in cache.files.items() if name in young} | known
    cache.young = young
    files = {name: sha256 for name, (_, sha256) in known.items()}
    return Scan(files, list(young), unreadable, sum(stat.size for stat in found.values()))


@dg.observable_source_asset(
    key=TEACHER_FILES,
    group_name="teacher",
    description="The landing folder `incoming/*.jsonl`, where people and generators put teacher rows. "
    "Its data version is the digest of names and contents.",
)
def teacher_files(artifacts: dg.ResourceParam[Artifacts]) -> dg.ObserveResult:
    """Observe the landing folder."""
    incoming = artifacts.layout.incoming
    with user_errors_fail_the_step():
        seen = scan(incoming, listing(incoming), Cache(), settle_seconds=0)
        if seen.fault:
            raise UserError(seen.fault)
    return dg.ObserveResult(data_version=dg.DataVersion(seen.content), metadata=seen.metadata)


@dg.sensor(
    job=main_job,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Runs the whole graph once per change of the landing folder's content, when no file is being written.",
)
def new_teacher_data(
    context: dg.SensorEvaluationContext, artifacts: dg.ResourceParam[Artifacts]
) -> dg.SensorResult | dg.SkipReason:
    """One run request per change of content; a reason for every tick without one."""
    layout, before = artifacts.layout, Position.of(context.cursor)
    try:
        found = listing(layout.incoming)
    except UserError as error:
        return dg.SkipReason(str(error))
    files = amount(len(found), "landed file")
    unchanged = f"The content of {files} has not changed."
    listed = digest_of(found)
    if before and listed == before.listing:
        return dg.SkipReason(unchanged)

    seen = _cached_scan(context.instance, layout, found)
    if seen.fault:
        return dg.SkipReason(seen.fault)
    if seen.unsettled:
        young = f"{amount(len(seen.unsettled), 'file')} {verb(len(seen.unsettled), 'is', 'are')}"
        return dg.SkipReason(f"Waiting until {young} no longer written to: {_named(seen.unsettled)}")
    # Without a cursor the count goes on from the clock, not from 1: a sensor that was reset must not use old run keys.
    changes = before.changes if before else int(time.time())
    position = Position(listing=listed, content=seen.content, changes=changes)
    if before and seen.content == before.content:
        return dg.SensorResult(skip_reason=unchanged, cursor=position.model_dump_json())
    # Looked for after the listing, since what has read nothing by now will read all that was listed; and before the
    # look at what was taken in, lest a run fall between the two.
    wait = _whole_run_to_wait_for(context.instance, layout)
    if run := _whole_run_of(context.instance, layout, seen):
        reason = f"Run {run[:8]} has taken in {files} with this content already."
        return dg.SensorResult(skip_reason=reason, cursor=position.model_dump_json())
    if wait:
        return dg.SkipReason(wait)  # and the cursor stays: this is run after all if that run never takes it in
    position = position.model_copy(update={"changes": changes + 1})
    # The number tells A → B → A from A: Dagster never launches the same key twice.
    run_key = f"{position.changes}:{seen.content}"
    tags = {"dagster/data_version": seen.content}
    return dg.SensorResult(
        run_requests=[dg.RunRequest(run_key=run_key, tags={".dagster/po_assets_teacher_files": seen.content[:12]})],
        asset_events=[dg.AssetObservation(TEACHER_FILES, metadata=seen.metadata, tags=tags)],
        cursor=position.model_dump_json(),
    )


def _cached_scan(instance: dg.DagsterInstance, layout: Layout, found: dict[str, Stat]) -> Scan:
    """With one cache per instance and landing folder."""
    path = Path(instance.storage_directory()) / f"teacher_files-{digest_of(str(layout.incoming))[:12]}.json"
    cache = Cache.read(path)
    seen = scan(layout.incoming, found, cache)
    replace_file(path, cache.model_dump_json().encode())
    return seen


def _whole_run_of(instance: dg.DagsterInstance, layout: Layout, seen: Scan) -> str | None:
    """The run of the whole graph whose snapshot was made from these very files, if the last snapshot is one."""
    try:
        taken_in = {source.file: source.sha256 for source in sources_of(layout.raw)}
    except UserError:
        return None
    event = instance.get_latest_materialization_event(_TAKEN_IN_BY) if taken_in == seen.files else None
    run = instance.get_run_by_id(event.run_id) if event else None
    if run and works_elsewhere(run, layout):
        return None
    return run.run_id if run and run.job_name == main_job.name and _is_whole(run) else None


def _whole_run_to_wait_for(instance: dg.DagsterInstance, layout: Layout) -> str | None:
    """What is said of a run of the whole graph that is still to read the landing folder, or may be reading it."""
    last = instance.get_latest_materialization_event(_TAKEN_IN_BY)
    on_their_way = dg.RunsFilter(job_name=main_job.name, statuses=[*_NOT_STARTED, dg.DagsterRunStatus.STARTED])
    for record in instance.get_run_records(on_their_way):
        run = record.dagster_run
        steps = run.step_keys_to_execute  # of a run that is repeated from where it failed
        if not _is_whole(run) or works_elsewhere(run, layout) or (steps and _TAKEN_IN_BY.to_user_string() not in steps):
            continue
        if run.status in _NOT_STARTED:
            return f"Run {run.run_id[:8]}, which has not started, will take this in."
        if last is None or last.run_id != run.run_id:
            return f"Run {run.run_id[:8]} is taking in what has landed; waiting to see whether this is among it."
    return None


def _is_whole(run: dg.DagsterRun) -> bool:
    """Who materialized raw_teacher alone has not run the graph."""
    return not run.asset_selection


def _named(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_NAMED_FILES]) + " …" * (len(names) > _NAMED_FILES)


def _stat(entry: dict[str, Any]) -> Stat:
    changed = next((entry[key] for key in _TIME_KEYS if entry.get(key) is not None), 0.0)
    modified = changed if isinstance(changed, int | float) else changed.timestamp()
    return Stat(int(entry["size"] or 0), float(modified), str(entry.get("ETag") or ""))
