"""The sensor that runs the graph when teacher data lands, and `teacher_files`, the landing folder as Dagster sees it.

How the folder is looked at belongs to `watching`.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import dagster as dg

from po_assets.automation.jobs import main_job
from po_assets.automation.watching import Look, Memory, Position, listing, look
from po_assets.dag import Artifacts
from po_assets.errors import UserError
from po_assets.intake.landing import sources_of
from po_assets.storage import Layout, digest_of, read_manifest
from po_assets.text import amount, verb

TEACHER_FILES = dg.AssetKey("teacher_files")
_TAKEN_IN_BY = dg.AssetKey("raw_teacher")
_NAMED_FILES = 5
_NOT_STARTED = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING]


@dg.observable_source_asset(
    key=TEACHER_FILES,
    group_name="teacher",
    description="The landing folder `incoming/*.jsonl`, where people and generators put teacher rows. "
    "Its data version is the digest of names and contents.",
)
def teacher_files(artifacts: dg.ResourceParam[Artifacts]) -> dg.ObserveResult:
    """Observe the landing folder."""
    incoming = artifacts.layout.incoming
    try:
        seen = look(incoming, listing(incoming), Memory(), settle_seconds=0)
    except UserError as error:
        raise dg.Failure(str(error), allow_retries=False) from None
    if seen.unreadable:
        raise dg.Failure(_unreadable(seen), allow_retries=False)
    return dg.ObserveResult(data_version=dg.DataVersion(seen.content), metadata=_metadata(seen))


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
    layout, before = artifacts.layout, Position.from_cursor(context.cursor)
    try:
        found = listing(layout.incoming)
    except UserError as error:
        return dg.SkipReason(str(error))
    unchanged = f"The content of {amount(len(found), 'landed file')} has not changed."
    listed = digest_of(found)
    if before and listed == before.listing:
        return dg.SkipReason(unchanged)

    path = _memory_path(context.instance, layout)
    memory = Memory.read(path)
    seen = look(layout.incoming, found, memory)
    memory.write(path)
    if seen.unreadable:
        return dg.SkipReason(_unreadable(seen))
    if seen.unsettled:
        names = _named(seen.unsettled)
        young = amount(len(seen.unsettled), "file")
        return dg.SkipReason(
            f"Waiting until {young} {verb(len(seen.unsettled), 'is', 'are')} no longer written to: {names}"
        )
    # Without a cursor the count goes on from the clock, not from 1: a sensor that was reset must not use old run keys.
    position = Position(listed, seen.content, before.changes if before else int(time.time()))
    if before and seen.content == before.content:
        return dg.SensorResult(skip_reason=unchanged, cursor=position.to_cursor())
    # Looked for after the listing, since what has read nothing by now will read all that was listed; and before the
    # look at what was taken in, lest a run fall between the two.
    wait = _whole_run_to_wait_for(context.instance)
    if run := _whole_run_of(context.instance, layout, seen):
        reason = f"Run {run[:8]} has taken in {amount(len(found), 'landed file')} with this content already."
        return dg.SensorResult(skip_reason=reason, cursor=position.to_cursor())
    if wait:
        return dg.SkipReason(wait)  # and the cursor stays: this is run after all if that run never takes it in
    position = Position(listed, seen.content, position.changes + 1)
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(
                # The number tells A → B → A from A: Dagster never launches the same key twice.
                run_key=f"{position.changes}:{seen.content}",
                tags={"po_assets/teacher_files": seen.content[:12]},
            )
        ],
        asset_events=[
            dg.AssetObservation(TEACHER_FILES, metadata=_metadata(seen), tags={"dagster/data_version": seen.content})
        ],
        cursor=position.to_cursor(),
    )


def _whole_run_of(instance: dg.DagsterInstance, layout: Layout, seen: Look) -> str | None:
    """The run of the whole graph whose snapshot was made from these very files, if the last snapshot is one."""
    try:
        taken_in = {source.file: source.sha256 for source in sources_of(read_manifest(layout.raw), layout.raw)}
    except UserError:
        return None
    event = instance.get_latest_materialization_event(_TAKEN_IN_BY) if taken_in == seen.files else None
    run = instance.get_run_by_id(event.run_id) if event else None
    return run.run_id if run and run.job_name == main_job.name and _is_whole(run) else None


def _whole_run_to_wait_for(instance: dg.DagsterInstance) -> str | None:
    """What is said of a run of the whole graph that is still to read the landing folder, or may be reading it."""
    last = instance.get_latest_materialization_event(_TAKEN_IN_BY)
    on_their_way = dg.RunsFilter(job_name=main_job.name, statuses=[*_NOT_STARTED, dg.DagsterRunStatus.STARTED])
    for record in instance.get_run_records(on_their_way):
        run = record.dagster_run
        steps = run.step_keys_to_execute  # of a run that is repeated from where it failed
        if not _is_whole(run) or (steps and _TAKEN_IN_BY.to_user_string() not in steps):
            continue
        if run.status in _NOT_STARTED:
            return f"Run {run.run_id[:8]}, which has not started, will take this in."
        if last is None or last.run_id != run.run_id:
            return f"Run {run.run_id[:8]} is taking in what has landed; waiting to see whether this is among it."
    return None


def _is_whole(run: dg.DagsterRun) -> bool:
    """Who materialized raw_teacher alone has not run the graph."""
    return not run.asset_selection


def _unreadable(seen: Look) -> str:
    return (
        f"{amount(len(seen.unreadable), 'landed file')} cannot be read: "
        f"{_named([f'{name} ({why})' for name, why in seen.unreadable.items()])}. "
        "Make it readable, or take it out of the landing folder."
    )


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED_FILES]) + " …" * (len(names) > _NAMED_FILES)


def _memory_path(instance: dg.DagsterInstance, layout: Layout) -> Path:
    """One memory per instance and landing folder."""
    return Path(instance.storage_directory()) / f"teacher_files-{digest_of(str(layout.incoming))[:12]}.json"


def _metadata(seen: Look) -> dict[str, int]:
    return {"files": len(seen.files), "bytes": seen.size}
