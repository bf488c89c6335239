"""The asset `teacher_batch`. Thin: the work is in `run`, its checks are in `checks`."""

from typing import TYPE_CHECKING, Any

import dagster as dg

from po_assets.dag import Artifacts, records_table
from po_assets.errors import UserError
from po_assets.product_owner import METRIC_VERSION
from po_assets.storage import digest_of
from po_assets.teacher.prompt import TEACHER_PROMPT_VERSION
from po_assets.teacher.settings import BatchPlan, TeacherLLM, resolve

if TYPE_CHECKING:
    from po_assets.teacher.report import BatchReport

GROUP = "teacher_llm"
OWNERS = ["team:po-distillation"]
CODE_VERSION = f"2+prompt.{TEACHER_PROMPT_VERSION}+metric.{METRIC_VERSION}"


@dg.asset(
    group_name=GROUP,
    owners=OWNERS,
    kinds={"python", "openai", "jsonl"},
    code_version=CODE_VERSION,
    description="New teacher rows: asks a teacher LLM about concepts with requirements, keeps every answer at once, "
    "validates and scores it, and lands what is accepted as one file in `incoming/`, where the sensor takes over.\n\n"
    "Stops cleanly at its budget, goes on where it was interrupted, and never pays for an answer twice. The **ledger "
    "of attempts** says what became of every request.",
)
def teacher_batch(
    context: dg.AssetExecutionContext, artifacts: Artifacts, teacher_llm: TeacherLLM, batch_plan: BatchPlan
) -> dg.MaterializeResult[Any]:
    """Ask, keep, judge, land."""
    from po_assets.teacher.progress import BatchProgress
    from po_assets.teacher.run import OutageError, run_batch

    def observe(numbers: dict[str, float]) -> None:
        # Plotted by the UI while the asset is still being made.
        context.log_event(dg.AssetObservation(asset_key=context.asset_key, metadata=numbers))

    try:
        report = run_batch(
            resolve(teacher_llm, batch_plan), batch_plan, artifacts.layout, BatchProgress(context.log.info, observe)
        )
    except (UserError, OutageError) as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error
    return dg.MaterializeResult(
        data_version=dg.DataVersion(digest_of([report.journal, report.landed_file, report.accepted, report.requests])),
        metadata=_metadata(report),
    )


def _metadata(report: "BatchReport") -> dict[str, Any]:
    from po_assets.teacher.ledger import read_ledger, totals_of

    metadata: dict[str, Any] = {
        "model": f"{report.model} at {report.provider}",
        "ended": report.reason,
        "dagster/row_count": report.accepted,
        "payloads": report.payloads,
        "left_to_ask": report.open + report.failed,
        "given_up": report.given_up,
        "requests": report.requests,
        "acceptance_rate": report.acceptance,
        "tokens": report.tokens,
        "cost": report.cost,
        "cost_without_a_bill": report.estimated_cost,
        "seconds": report.seconds,
        "rows_per_minute": report.rows_per_minute,
        "outcomes": records_table(totals_of(read_ledger(report.ledger)).table()),
        "landed_rows": report.landed_rows,
        "landed_file": report.landed_file or "none: there is no new accepted row",
        "ledger": dg.MetadataValue.path(report.ledger),
        "journal": dg.MetadataValue.path(report.journal),
    }
    if report.left_out:
        metadata["left_out"] = records_table(report.left_out)
    if report.journal_faults:
        metadata["journal_faults"] = "; ".join(report.journal_faults)
    return metadata
