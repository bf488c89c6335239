"""The checks of `eval_report`: the gate's thresholds, one check each. The rules themselves are in `gate`."""

from collections.abc import Iterator

import dagster as dg

from po_assets.dag import Artifacts, Verdict, read_frame, to_check_result
from po_assets.evaluation.assets import baseline_report, eval_report
from po_assets.evaluation.gate import evaluate_gate
from po_assets.evaluation.gate_rows import THRESHOLDS, GateRow
from po_assets.evaluation.scoring import answers_from_records

_ASSET = "eval_report"
_DESCRIPTIONS = {
    "case_count": f"All {THRESHOLDS.case_count} evaluation cases count; one without an answer counts as an empty one.",
    "mean_score": f"The student's mean score over every case is at least {THRESHOLDS.mean_score:.2f}.",
    "score_std": f"The scores' sample standard deviation is at most {THRESHOLDS.score_std:.2f}.",
    "delta_vs_baseline": f"The student's mean is at most {-THRESHOLDS.delta_vs_baseline:.2f} below the baseline's.",
    "valid_answers": f"At least {THRESHOLDS.valid_answers:.0%} of the answers pass the validator.",
    "non_inferiority": "The 95 % interval of the paired difference stays above the margin.",
    "status_accuracy": "The status is right more often than by always giving the most frequent one.",
    "worst_case": f"No case scores under {THRESHOLDS.worst_case:.2f}.",
}
_WARNINGS = {"non_inferiority", "status_accuracy", "worst_case"}


def verdict_of(row: GateRow) -> Verdict:
    """A row of the gate as a check's verdict; the cases behind it are shown when it fails."""
    return Verdict(
        passed=row.passed,
        summary=row.summary,
        next_step=row.next_step,
        rows=() if row.passed else row.cases,
        numbers=row.numbers,
        severity=row.severity,
    )


@dg.multi_asset_check(
    name="eval_report_gate",
    specs=[
        dg.AssetCheckSpec(name, asset=_ASSET, description=text, blocking=name not in _WARNINGS)
        for name, text in _DESCRIPTIONS.items()
    ],
    can_subset=True,
)
def eval_report_gate(context: dg.AssetCheckExecutionContext, artifacts: Artifacts) -> Iterator[dg.AssetCheckResult]:
    """Compute the gate from the two answers tables, the unit of truth, and give each row as a check."""
    layout = artifacts.layout
    baseline, student = (
        answers_from_records(read_frame(path).to_dict(orient="records"), str(path))
        for path in (layout.baseline_answers, layout.student_answers)
    )
    selected = {key.name for key in context.selected_asset_check_keys}
    for row in evaluate_gate(baseline, student):
        if row.name in selected:
            yield to_check_result(row.name, _ASSET, verdict_of(row))


evaluation_assets: list[dg.AssetsDefinition] = [baseline_report, eval_report]
evaluation_checks: list[dg.AssetChecksDefinition] = [eval_report_gate]
