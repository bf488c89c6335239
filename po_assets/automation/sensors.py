"""The sensor that runs the graph when teacher data lands, and `teacher_files`, the landing folder as Dagster sees it.

How the folder is looked at belongs to `watching`.
"""

from dataclasses import replace

import dagster as dg

from po_assets.automation.jobs import main_job
from po_assets.automation.watching import FolderState, look
from po_assets.storage import Artifacts, Layout, read_manifest
from po_assets.teacher.landing import LandingError, sources_of

TEACHER_FILES = dg.AssetKey("teacher_files")


@dg.observable_source_asset(
    key=TEACHER_FILES,
    group_name="teacher",
    description="The landing folder `incoming/*.jsonl`, where people and generators put teacher rows. "
    "Its data version is the digest of names and contents.",
)
def teacher_files(artifacts: dg.ResourceParam[Artifacts]) -> dg.ObserveResult:
    """Observe the landing folder."""
    state = look(artifacts.layout.incoming, FolderState(), settle_seconds=0).state
    return dg.ObserveResult(data_version=dg.DataVersion(state.digest), metadata=_metadata(state))


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
    before = FolderState.from_cursor(context.cursor)
    try:
        seen = look(artifacts.layout.incoming, before)
    except LandingError as error:
        return dg.SkipReason(str(error))
    if seen.unsettled:
        names = ", ".join(seen.unsettled[:5]) + (" …" if len(seen.unsettled) > 5 else "")
        return dg.SkipReason(f"Waiting until {len(seen.unsettled)} files are no longer written to: {names}")
    now = seen.state
    if now.digest == before.digest:
        # A touched file is remembered with its new time, so that it is not hashed again at every tick.
        cursor = now.to_cursor() if now.files != before.files else context.cursor
        return dg.SensorResult(
            skip_reason=f"The content of {len(now.files)} landed files has not changed.", cursor=cursor
        )
    if not context.cursor and _taken_in(artifacts.layout) == {name: seen.sha256 for name, seen in now.files.items()}:
        return dg.SensorResult(
            skip_reason=f"A run has taken in these {len(now.files)} files already.", cursor=now.to_cursor()
        )
    now = replace(now, changes=before.changes + 1)
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(
                # The number tells A → B → A from A: Dagster never launches the same key twice.
                run_key=f"{now.changes}:{now.digest}",
                tags={"po_assets/teacher_files": now.digest[:12]},
            )
        ],
        asset_events=[
            dg.AssetObservation(TEACHER_FILES, metadata=_metadata(now), tags={"dagster/data_version": now.digest})
        ],
        cursor=now.to_cursor(),
    )


def _taken_in(layout: Layout) -> dict[str, str]:
    """The files, with sha256, that the present snapshot was made from."""
    try:
        return {source.file: source.sha256 for source in sources_of(read_manifest(layout.raw), layout.raw)}
    except LandingError:
        return {}


def _metadata(state: FolderState) -> dict[str, int]:
    return {"files": len(state.files), "bytes": sum(seen.size for seen in state.files.values())}
