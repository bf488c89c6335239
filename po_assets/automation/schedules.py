"""The schedule: a nightly run of what is stale, for changes that land no file (code, settings, prompt, metric)."""

from functools import partial

import dagster as dg

from po_assets.automation.jobs import main_job
from po_assets.automation.staleness import artifact_problem, catch_up
from po_assets.dag import Artifacts

_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


@dg.schedule(
    job=main_job,
    cron_schedule="0 3 * * *",
    description="Every night at 03:00 UTC: materializes what is stale or missing, and what depends on it; starts no "
    "run when nothing is, and nothing below a failed gate.",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
def nightly_catch_up(
    context: dg.ScheduleEvaluationContext, artifacts: dg.ResourceParam[Artifacts]
) -> dg.RunRequest | dg.SkipReason:
    """Request a run of what is to be made again, or say why there is none."""
    on_its_way = dg.RunsFilter(job_name=main_job.name, statuses=_UNFINISHED)
    if records := context.instance.get_run_records(on_its_way, limit=1):
        return dg.SkipReason(f"Run {records[0].dagster_run.run_id[:8]} of the graph has not ended yet.")
    assert context.repository_def is not None  # noqa: S101 - for the type checker: set in every tick
    graph, layout = context.repository_def.asset_graph, artifacts.layout
    wanted = main_job.selection.resolve(graph)
    found = catch_up(context.instance, graph, wanted, partial(artifact_problem, layout))
    if not found.stale:
        return dg.SkipReason(
            f"Nothing can be caught up: {found.described()}." if found.blocked else "Nothing is stale."
        )
    context.log.info(found.described())
    return dg.RunRequest(asset_selection=list(found.stale), tags={"po_assets/reason": found.described()[:500]})
