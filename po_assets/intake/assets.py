"""The assets raw_teacher and normalized_teacher, and their settings: read, call the plain functions, say what came out.

How lines are copied, read and written belongs to `landing` and `ledger`.
"""

from dataclasses import asdict
from datetime import timedelta
from typing import Any

import dagster as dg
import numpy as np
from pydantic import Field, model_validator

from po_assets.dag import (
    Artifacts,
    Settings,
    bar_chart,
    column_schema,
    histogram,
    page_list,
    page_table,
    place,
    user_errors_fail_the_step,
)
from po_assets.intake.landing import list_landing, skipped_record, snapshot
from po_assets.intake.ledger import SCORE_STEPS, Outcome, normalize_snapshot
from po_assets.intake.normalization import COLUMNS
from po_assets.product_owner import METRIC_VERSION, STATUSES
from po_assets.product_owner.contract import STATUS_ALIASES
from po_assets.storage import digest_of, recorded_digest

RAW_CODE_VERSION = "2"
NORMALIZED_CODE_VERSION = f"5+metric.{METRIC_VERSION}"
OWNERS = ["team:po-distillation"]
GROUP = "teacher"
FRESHNESS = dg.FreshnessPolicy.time_window(fail_window=timedelta(days=90), warn_window=timedelta(days=30))
"""Of what comes in and what comes out: a student older than a month is asked about, one of a quarter year is old."""
_LANDED = dg.AssetKey("teacher_files")
_HISTOGRAM_VALUES = 20_000


class IntakeSettings(Settings):
    """What the intake of teacher rows tolerates; `dataset.settings` extends it by which rows are trained on."""

    max_rejected_share: float = Field(default=0.05, ge=0, le=1)
    """Largest share of landed rows that may be rejected; above it the graph stops."""
    score_tolerance: float = Field(default=0.005, ge=0, le=1)
    """Declared scores further than this from the metric's own figure are listed."""
    status_aliases: dict[str, str] = STATUS_ALIASES
    """Other words for a review's status, and the status that each stands for; the ledger notes it."""

    @model_validator(mode="after")
    def _known_statuses(self) -> "IntakeSettings":
        wrong = sorted(set(self.status_aliases.values()) - set(STATUSES))
        if wrong:
            raise ValueError(f"status_aliases: {wrong[0]!r} must be one of {', '.join(STATUSES)}.")
        return self


@dg.asset(
    deps=[_LANDED],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"python", "jsonl"},
    code_version=RAW_CODE_VERSION,
    freshness_policy=FRESHNESS,
    io_manager_key="io_manager",
    description=(
        "One row per landed line, verbatim: a snapshot of the landing folder; nothing is changed or left out.\n\n"
        "Takes every `incoming/*.jsonl` in name order and names what else lies there. Landing the same files again "
        "gives the same data version."
    ),
)
@user_errors_fail_the_step()
def raw_teacher(context: dg.AssetExecutionContext, artifacts: Artifacts) -> dg.MaterializeResult[Any]:
    """Copy the landed lines into one file."""
    layout = artifacts.layout
    folder = list_landing(layout.incoming)
    staged, sources = snapshot(folder.files, layout.raw)
    landed, skipped = [asdict(source) for source in sources], skipped_record(folder)
    staged = staged.with_manifest(
        inputs={source.file: source.sha256 for source in sources},
        code_version=RAW_CODE_VERSION,
        extra={"sources": landed, "skipped": skipped},
    )
    context.log.info("%d lines of %d files", staged.rows, len(sources))
    # Tell Dagster the data version of `teacher_files` that was read, the sensor's formula over these very bytes. Else
    # the version on record would be of an earlier look at the folder, or of none, and the next look would show
    # `raw_teacher` as stale with nothing changed.
    read = {"dagster/data_version": digest_of({source.file: source.sha256 for source in sources})}
    context.log_event(dg.AssetObservation(_LANDED, metadata={"files": len(sources)}, tags=read))
    context.get_step_execution_context().wipe_input_asset_version_info(_LANDED)  # looked up before the step began
    return dg.MaterializeResult(
        value=staged,
        # Which line landed in which file is part of the data: the ledger names it.
        data_version=dg.DataVersion(digest_of([staged.sha256, landed])),
        metadata={
            "dagster/row_count": staged.rows,
            "files": len(sources),
            "skipped": skipped["count"],
            "landed_files": page_table(
                [{"file": source.file, "rows": source.rows, "sha256": source.sha256[:12]} for source in sources]
            ),
            "path": place(layout.raw),
        }
        | ({"skipped_files": page_table(skipped["first"], of=skipped["count"])} if folder.skipped else {}),
    )


@dg.asset(
    deps=[raw_teacher],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"python", "pandas", "jsonl"},
    code_version=NORMALIZED_CODE_VERSION,
    io_manager_key="io_manager",
    metadata={"dagster/column_schema": column_schema(COLUMNS)},
    description=(
        "One row per readable teacher row, all formats brought into one form, scored by the metric and validated.\n\n"
        "Opens the **row ledger** (`distillation/po_teacher_ledger.jsonl`: an outcome for every landed line) and sets "
        "what cannot be read aside, verbatim and with the reason, in `distillation/po_teacher_rejected.jsonl`."
    ),
)
@user_errors_fail_the_step()
def normalized_teacher(
    context: dg.AssetExecutionContext, artifacts: Artifacts, selection: dg.ResourceParam[IntakeSettings]
) -> dg.MaterializeResult[Any]:
    """Normalize every line of the snapshot."""
    layout, aliases = artifacts.layout, selection.status_aliases
    staged, summary = normalize_snapshot(layout, status_aliases=aliases)
    staged = staged.with_manifest(config=digest_of(aliases), code_version=NORMALIZED_CODE_VERSION)
    outcomes, counts = summary.outcomes, summary.counts
    rejected = outcomes.of(Outcome.REJECTED)
    context.log.info("%d rows normalized, %d of %d landed lines rejected", summary.rows, rejected, outcomes.total)
    metadata: dict[str, dg.MetadataValue | int | float] = {
        "dagster/row_count": summary.rows,
        "landed": outcomes.total,
        "rejected": rejected,
        "invalid_answers": counts["valid"][False],
        "scored_by_the_metric": counts["score_source"]["metric"],
        "outcomes": page_list(outcomes.lines()),
        "examples": page_table(outcomes.table()),
        "preview": page_table(summary.preview, of=summary.rows),
        "path": place(layout.normalized),
    }
    if summary.rows:
        steps, often = zip(*sorted(counts["score"].items()), strict=True)
        scores = thinned(np.repeat(steps, often) / SCORE_STEPS)
        metadata |= {
            "formats": bar_chart(dict(counts["format"].most_common()), "Record formats"),
            "statuses": bar_chart(dict(counts["status"].most_common()), "Review status"),
            "tiers": bar_chart({tier or "not said": n for tier, n in counts["tier"].most_common()}, "Tiers"),
            "scores": histogram(scores, "Scores (declared, else the metric's)", "score"),
        }
    # What is rejected is not in the table, and still changes the ledger, which supervised_dataset closes.
    version = digest_of([staged.sha256, recorded_digest(layout.ledger)])
    return dg.MaterializeResult(value=staged, data_version=dg.DataVersion(version), metadata=metadata)


def thinned(values: np.ndarray[Any, Any]) -> list[float]:
    """At most `_HISTOGRAM_VALUES` of the values, evenly picked: a picture needs no more."""
    return [float(value) for value in values[:: max(1, -(-len(values) // _HISTOGRAM_VALUES))]]
