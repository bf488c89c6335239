"""The checks of raw_teacher and normalized_teacher, those of one asset in one step.

What they look at, and what they say, belongs to `verdicts`.
"""

from collections.abc import Iterator

import dagster as dg

from po_assets.dag import Artifacts, Verdict, to_check_result
from po_assets.intake.assets import normalized_teacher, raw_teacher
from po_assets.intake.landing import Source, sources_of
from po_assets.intake.ledger import balance
from po_assets.intake.policy import IntakePolicy
from po_assets.intake.verdicts import (
    DeclaredScoresRule,
    SchemaRule,
    has_records,
    ledger_balances,
    rejected_share,
)
from po_assets.storage import Layout, read_manifest, read_rows

_RAW_SPECS = [
    dg.AssetCheckSpec(
        "has_records",
        asset=raw_teacher,
        blocking=True,
        description="The snapshot is whole and holds a line that is not blank; a warning when a file was not taken in.",
    )
]
_NORMALIZED_SPECS = [
    dg.AssetCheckSpec(
        "schema",
        asset=normalized_teacher,
        blocking=True,
        description="Every row has exactly the columns, with sound values, in landing order.",
    ),
    dg.AssetCheckSpec(
        "ledger_balances",
        asset=normalized_teacher,
        blocking=True,
        description="Every landed line has exactly one outcome, by counting the lines of the files themselves.",
    ),
    dg.AssetCheckSpec(
        "rejected_share",
        asset=normalized_teacher,
        blocking=True,
        description="Few enough landed rows were rejected (max_rejected_share); a warning when any was.",
    ),
    dg.AssetCheckSpec(
        "declared_scores_match_metric",
        asset=normalized_teacher,
        description="The scores that rows declare are those that this project's metric gives them.",
    ),
]


@dg.multi_asset_check(name="raw_teacher_checks", specs=_RAW_SPECS)
def raw_teacher_checks(artifacts: Artifacts) -> Iterator[dg.AssetCheckResult]:
    """Run the check of raw_teacher."""
    layout = artifacts.layout
    manifest = read_manifest(layout.raw)
    not_taken = manifest.extra.get("not_taken", {}) if manifest else {}
    verdict = has_records(layout.raw, sources_of(manifest, layout.raw), not_taken)
    yield to_check_result("has_records", "raw_teacher", verdict)


@dg.multi_asset_check(name="normalized_teacher_checks", specs=_NORMALIZED_SPECS, can_subset=True)
def normalized_teacher_checks(
    context: dg.AssetCheckExecutionContext, artifacts: Artifacts, selection: dg.ResourceParam[IntakePolicy]
) -> Iterator[dg.AssetCheckResult]:
    """Run the selected checks of normalized_teacher: one pass over the table, one over the ledger."""
    wanted = {key.name for key in context.selected_asset_check_keys}
    verdicts = normalized_verdicts(artifacts.layout, selection)
    for name, verdict in verdicts.items():
        if name in wanted:
            yield to_check_result(name, "normalized_teacher", verdict)


def normalized_verdicts(layout: Layout, policy: IntakePolicy) -> dict[str, Verdict]:
    """The verdict of every check of normalized_teacher."""
    sources = _sources(layout)
    schema, scores = SchemaRule(sources), DeclaredScoresRule(policy.score_tolerance)
    for row in read_rows(layout.normalized):
        if schema.add(row):
            scores.add(row)
    counted = balance(layout.raw, sources, layout.ledger, layout.normalized, layout.rejected)
    return {
        "schema": schema.verdict(),
        "ledger_balances": ledger_balances(counted),
        "rejected_share": rejected_share(counted.outcomes, policy.max_rejected_share),
        "declared_scores_match_metric": scores.verdict(),
    }


def _sources(layout: Layout) -> list[Source]:
    return sources_of(read_manifest(layout.raw), layout.raw)


teacher_checks = [raw_teacher_checks, normalized_teacher_checks]
