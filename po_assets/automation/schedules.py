"""The schedule: a nightly run of what is stale, for changes that land no file (code, settings, prompt, metric)."""

import dagster as dg

from po_assets.automation.jobs import main_job


@dg.schedule(
    job=main_job,
    cron_schedule="0 3 * * *",
    description="Every night at 03:00 UTC: materializes what is stale or missing; starts no run when nothing is.",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
def nightly_catch_up(_context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """Request a run narrowed to stale assets; Dagster drops the request when there are none."""
    return dg.RunRequest(stale_assets_only=True)
