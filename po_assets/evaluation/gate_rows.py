"""The rows of the gate: one function per threshold, each with its sentence, its cases and its next step.

Which rows make the gate, and when it has passed, is in `gate`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from po_assets.evaluation.scoring import ScoredAnswer
from po_assets.evaluation.statistics import PairedDifference, Summary, confusion_matrix, majority_share

Severity = Literal["ERROR", "WARN"]


@dataclass(frozen=True)
class GateThresholds:
    """What the gate asks for. Published results rest on these, so they are not configurable."""

    case_count: int = 40
    mean_score: float = 0.82
    score_std: float = 0.10
    delta_vs_baseline: float = -0.03
    """One-sided: a student may be better by any amount."""
    valid_answers: float = 0.90
    worst_case: float = 0.70


THRESHOLDS = GateThresholds()


@dataclass(frozen=True)
class GateRow:
    """One threshold, what was found, and for a failure which cases are behind it and what to do."""

    name: str
    required: str
    value: str
    passed: bool
    severity: Severity
    summary: str
    next_step: str = ""
    cases: list[dict[str, Any]] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)


def case_count(summary: Summary, thresholds: GateThresholds) -> GateRow:
    """All cases were evaluated; one without an answer counts as an empty answer."""
    return GateRow(
        name="case_count",
        required=f"= {thresholds.case_count}",
        value=str(summary.cases),
        passed=summary.cases == thresholds.case_count,
        severity="ERROR",
        summary=f"{summary.cases} cases were evaluated, {thresholds.case_count} are wanted.",
        next_step="Restore artifacts/evaluation/po_eval_cases.jsonl to its 40 cases and materialize eval_cases: with "
        "fewer, a difference of 0.03 cannot be told from chance.",
        numbers={"cases": summary.cases},
    )


def mean_score(summary: Summary, student: Sequence[ScoredAnswer], thresholds: GateThresholds) -> GateRow:
    """The mean over every case."""
    return GateRow(
        name="mean_score",
        required=f">= {thresholds.mean_score:.2f}",
        value=f"{summary.mean:.3f}",
        passed=summary.mean >= thresholds.mean_score,
        severity="ERROR",
        summary=f"The student scores {summary.mean:.3f} on average over all {summary.cases} cases, at least "
        f"{thresholds.mean_score:.2f} is asked for.",
        next_step="The table lists the lowest cases with what cost them points; open them in the HTML report. Where "
        "blocks do not parse or sections are missing, train longer; where requirements are not covered, look at the "
        "data.",
        cases=_case_rows(sorted(student, key=lambda answer: answer.total)[:10]),
        numbers={"mean score": summary.mean},
    )


def score_std(summary: Summary, student: Sequence[ScoredAnswer], thresholds: GateThresholds) -> GateRow:
    """The spread of the scores."""
    outliers = sorted(student, key=lambda answer: -abs(answer.total - summary.mean))[:10]
    return GateRow(
        name="score_std",
        required=f"<= {thresholds.score_std:.2f}",
        value=f"{summary.std:.3f}",
        passed=summary.std <= thresholds.score_std,
        severity="ERROR",
        summary=f"The scores spread by {summary.std:.3f} (sample standard deviation) around {summary.mean:.3f}, at "
        f"most {thresholds.score_std:.2f} is allowed.",
        next_step="The table lists the cases farthest from the mean. A few very low ones are usually answers that were "
        "cut or do not parse; see their problems.",
        cases=_case_rows(outliers),
        numbers={"standard deviation": summary.std},
    )


def delta_vs_baseline(
    baseline: Summary, student: Summary, pairs: Sequence[tuple[ScoredAnswer, ScoredAnswer]], thresholds: GateThresholds
) -> GateRow:
    """The student's mean against the baseline's, one-sided."""
    delta = student.mean - baseline.mean
    worse = sorted(pairs, key=lambda pair: pair[1].total - pair[0].total)[:10]
    return GateRow(
        name="delta_vs_baseline",
        required=f">= {thresholds.delta_vs_baseline:+.2f}",
        value=f"{delta:+.3f}",
        passed=delta >= thresholds.delta_vs_baseline,
        severity="ERROR",
        summary=f"The student scores {student.mean:.3f}, the baseline {baseline.mean:.3f} on the same cases: a "
        f"difference of {delta:+.3f}, at least {thresholds.delta_vs_baseline:+.2f} is asked for.",
        next_step="Training made the model worse than its base: look at the loss curve of lora_adapter and at the "
        "cases below, which lost most.",
        cases=[
            {
                "case": answer.case_id,
                "baseline": round(base.total, 3),
                "student": round(answer.total, 3),
                "difference": round(answer.total - base.total, 3),
                "what cost points": "; ".join(answer.problems[:3]),
            }
            for base, answer in worse
        ],
        numbers={"delta": delta, "baseline mean": baseline.mean},
    )


def valid_answers(summary: Summary, student: Sequence[ScoredAnswer], thresholds: GateThresholds) -> GateRow:
    """The share of answers that can be used."""
    invalid = [answer for answer in student if not answer.valid]
    return GateRow(
        name="valid_answers",
        required=f">= {thresholds.valid_answers:.0%}",
        value=f"{summary.valid_share:.1%}",
        passed=summary.valid_share >= thresholds.valid_answers,
        severity="ERROR",
        summary=f"{len(invalid)} of {summary.cases} answers are not valid, so {summary.valid_share:.1%} are; at least "
        f"{thresholds.valid_answers:.0%} is asked for.",
        next_step="The table gives the validator's reason for each. Nothing downstream can use such an answer: train "
        "until the form is learnt, or decode with the grammar (mode constrained).",
        cases=[
            {
                "case": a.case_id,
                "reason": a.invalid_reason,
                "finish reason": a.finish_reason,
                "score": round(a.total, 3),
            }
            for a in invalid
        ],
        numbers={"valid share": summary.valid_share},
    )


def non_inferiority(difference: PairedDifference, thresholds: GateThresholds) -> GateRow:
    """Whether the data exclude that the student is worse by more than the margin."""
    margin = thresholds.delta_vs_baseline
    return GateRow(
        name="non_inferiority",
        required=f"95 % CI >= {margin:+.2f}",
        value=f"[{difference.low:+.3f}, {difference.high:+.3f}]",
        passed=difference.low >= margin,
        severity="WARN",
        summary=f"With 95 % confidence the student differs from the baseline by {difference.low:+.3f} to "
        f"{difference.high:+.3f} (paired bootstrap over {difference.cases} cases); the lower end should not be under "
        f"{margin:+.2f}. This many cases resolve a difference of {difference.smallest_resolvable:.3f}.",
        next_step=(
            "The student is worse by more than the margin, not by chance: see the cases that lost most under "
            "delta_vs_baseline."
            if difference.high < margin
            else "The cases leave open whether the student is worse by more than the margin. Add evaluation cases, or "
            "look at the ones that lost most under delta_vs_baseline."
        ),
        numbers={
            "difference": difference.mean,
            "interval low": difference.low,
            "interval high": difference.high,
            "smallest resolvable difference": min(difference.smallest_resolvable, 1.0),
        },
    )


def status_accuracy(summary: Summary, student: Sequence[ScoredAnswer]) -> GateRow:
    """Whether the status is right more often than by guessing; the metric does not see this."""
    guess = majority_share(student)
    wrong = [answer for answer in student if not answer.status_is_right]
    missed = ", ".join(
        f"{row[status]} of {sum(row.values())} {status}"
        for status, row in confusion_matrix(student).items()
        if sum(row.values())
    )
    return GateRow(
        name="status_accuracy",
        required=f"> {guess:.1%}",
        value=f"{summary.status_accuracy:.1%}",
        passed=summary.status_accuracy > guess,
        severity="WARN",
        summary=f"{summary.cases - len(wrong)} of {summary.cases} answers give the right status "
        f"({summary.status_accuracy:.1%}, macro-F1 {summary.macro_f1:.2f}); always giving the most frequent one would "
        f"be right in {guess:.1%}. Right were {missed}.",
        next_step="The metric does not see this. The table lists the wrong ones; more training rows of the status that "
        "is missed most usually help.",
        cases=[
            {"case": a.case_id, "tier": a.tier, "reference": a.reference_status, "student": a.status or "no status"}
            for a in wrong
        ],
        numbers={"status accuracy": summary.status_accuracy, "macro-F1": summary.macro_f1},
    )


def worst_case(student: Sequence[ScoredAnswer], thresholds: GateThresholds) -> GateRow:
    """Whether any single answer is far off."""
    low = sorted(
        (answer for answer in student if answer.total < thresholds.worst_case), key=lambda answer: answer.total
    )
    worst = min(student, key=lambda answer: answer.total)
    return GateRow(
        name="worst_case",
        required=f">= {thresholds.worst_case:.2f}",
        value=f"{worst.total:.3f}",
        passed=not low,
        severity="WARN",
        summary=f"{len(low)} of {len(student)} cases score under {thresholds.worst_case:.2f}; the worst is "
        f"{worst.case_id} with {worst.total:.3f}.",
        next_step="Open these cases in the HTML report: prompt, both answers, the reference and what cost points.",
        cases=_case_rows(low),
        numbers={"worst score": worst.total, "cases under the line": len(low)},
    )


def _case_rows(answers: Sequence[ScoredAnswer]) -> list[dict[str, Any]]:
    return [
        {
            "case": answer.case_id,
            "tier": answer.tier,
            "score": round(answer.total, 3),
            "what cost points": "; ".join(answer.problems[:3]) or "nothing",
        }
        for answer in answers
    ]
