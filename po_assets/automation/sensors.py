"""The sensor that runs the graph when teacher data lands, and `teacher_files`, the landing folder as Dagster sees it.

How the folder is looked at belongs to `watching`.
"""

import time
from pathlib import Path

import dagster as dg

from po_assets.automation.jobs import main_job
from po_assets.automation.watching import Look, Memory, Position, listing, look
from po_assets.storage import Artifacts, Layout, digest_of, read_manifest
from po_assets.teacher.landing import LandingError, sources_of
from po_assets.teacher.wording import amount, verb

TEACHER_FILES = dg.AssetKey("teacher_files")
_TAKEN_IN_BY = dg.AssetKey("raw_teacher")
_NAMED_FILES = 5


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
    except LandingError as error:
        raise dg.Failure(str(error), allow_retries=False) from None
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
    except LandingError as error:
        return dg.SkipReason(str(error))
    unchanged = f"The content of {amount(len(found), 'landed file')} has not changed."
    listed = digest_of(found)
    if before and listed == before.listing:
        return dg.SkipReason(unchanged)

    path = _memory_path(context.instance, layout)
    memory = Memory.read(path)
    seen = look(layout.incoming, found, memory)
    memory.write(path)
    if seen.unsettled:
        names = ", ".join(seen.unsettled[:_NAMED_FILES]) + " …" * (len(seen.unsettled) > _NAMED_FILES)
        young = amount(len(seen.unsettled), "file")
        return dg.SkipReason(
            f"Waiting until {young} {verb(len(seen.unsettled), 'is', 'are')} no longer written to: {names}"
        )
    # Without a cursor the count goes on from the clock, not from 1: a sensor that was reset must not use old run keys.
    position = Position(listed, seen.content, before.changes if before else int(time.time()))
    if before and seen.content == before.content:
        return dg.SensorResult(skip_reason=unchanged, cursor=position.to_cursor())
    if run := _whole_run_of(context.instance, layout, seen):
        reason = f"Run {run[:8]} has taken in {amount(len(found), 'landed file')} with this content already."
        return dg.SensorResult(skip_reason=reason, cursor=position.to_cursor())
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
    except LandingError:
        return None
    event = instance.get_latest_materialization_event(_TAKEN_IN_BY) if taken_in == seen.files else None
    run = instance.get_run_by_id(event.run_id) if event else None
    # Who materialized raw_teacher alone has not run the graph.
    return run.run_id if run and run.job_name == main_job.name and not run.asset_selection else None


def _memory_path(instance: dg.DagsterInstance, layout: Layout) -> Path:
    """One memory per instance and landing folder."""
    return Path(instance.storage_directory()) / f"teacher_files-{digest_of(str(layout.incoming))[:12]}.json"


def _metadata(seen: Look) -> dict[str, int]:
    return {"files": len(seen.files), "bytes": seen.size}
