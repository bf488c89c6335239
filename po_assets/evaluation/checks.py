"""The checks of `eval_report`, which are the criteria of the gate: one function each, with its sentence and next step.

Computed from scored answers alone. What follows from the verdicts (the record, the promotion) belongs to `gate`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from po_assets.dag import Artifacts, AssetChecks, Verdict
from po_assets.errors import UserError
from po_assets.evaluation.scoring import ScoredAnswer, read_scored
from po_assets.evaluation.settings import GateProfile
from po_assets.evaluation.statistics import (
    PairedDifference,
    Summary,
    confusion_matrix,
    majority_share,
    paired_difference,
    summarize,
)

_SHOWN_CASES = 10


@dataclass(frozen=True)
class Evidence:
    """What the gate looks at: two sides that answered the same cases in the same way.

    Raises:
        UserError: they do not pair.
    """

    baseline: Sequence[ScoredAnswer]
    student: Sequence[ScoredAnswer]
    profile: GateProfile = field(default_factory=GateProfile)

    def __post_init__(self) -> None:
        refuse_unpaired(self.baseline, self.student)

    @cached_property
    def summary(self) -> Summary:
        """What the student's answers come to."""
        return summarize(self.student)

    @cached_property
    def baseline_summary(self) -> Summary:
        """What the baseline's come to."""
        return summarize(self.baseline)

    @cached_property
    def pairs(self) -> list[tuple[ScoredAnswer, ScoredAnswer]]:
        """Baseline's and student's answer to each case, in the student's order."""
        by_case = {answer.case_id: answer for answer in self.baseline}
        return [(by_case[answer.case_id], answer) for answer in self.student]

    @cached_property
    def difference(self) -> PairedDifference:
        """Student less baseline."""
        return paired_difference([b.total for b, _ in self.pairs], [s.total for _, s in self.pairs])


checks = AssetChecks[Evidence]("eval_report")


@checks.register(blocking=True)
def case_count(found: Evidence) -> Verdict:
    """All evaluation cases that the gate asks for count; one without an answer counts as an empty one."""
    wanted, cases = found.profile.case_count, found.summary.cases
    return Verdict(
        passed=cases == wanted,
        required=f"= {wanted}",
        value=str(cases),
        summary=f"{cases} cases were evaluated, {wanted} are wanted.",
        next_step=f"Restore artifacts/evaluation/po_eval_cases.jsonl to its {wanted} cases and materialize eval_cases: "
        "with fewer, a difference of 0.03 cannot be told from chance.",
        numbers={"cases": cases},
    )


@checks.register(blocking=True)
def mean_score(found: Evidence) -> Verdict:
    """The student's mean score over every case is at least what the gate asks for."""
    mean, least = found.summary.mean, found.profile.mean_score
    return _verdict(
        passed=mean >= least,
        required=f">= {least:.2f}",
        value=f"{mean:.3f}",
        summary=f"The student scores {mean:.3f} on average over all {found.summary.cases} cases, at least {least:.2f} "
        "is asked for.",
        next_step="The table lists the lowest cases with what cost them points; open them in the HTML report. Where "
        "blocks do not parse or sections are missing, train longer; where requirements are not covered, look at the "
        "data.",
        rows=_case_rows(sorted(found.student, key=lambda answer: answer.total)[:_SHOWN_CASES]),
        numbers={"mean score": mean},
    )


@checks.register(blocking=True)
def score_std(found: Evidence) -> Verdict:
    """The scores' sample standard deviation is at most what the gate allows."""
    std, mean, most = found.summary.std, found.summary.mean, found.profile.score_std
    return _verdict(
        passed=std <= most,
        required=f"<= {most:.2f}",
        value=f"{std:.3f}",
        summary=f"The scores spread by {std:.3f} (sample standard deviation) around {mean:.3f}, at most {most:.2f} is "
        "allowed.",
        next_step="The table lists the cases farthest from the mean. A few very low ones are usually answers that were "
        "cut or do not parse; see their problems.",
        rows=_case_rows(sorted(found.student, key=lambda answer: -abs(answer.total - mean))[:_SHOWN_CASES]),
        numbers={"standard deviation": std},
    )


@checks.register(blocking=True)
def delta_vs_baseline(found: Evidence) -> Verdict:
    """The student's mean is not below the baseline's by more than the gate allows."""
    student, baseline, least = found.summary.mean, found.baseline_summary.mean, found.profile.delta_vs_baseline
    delta = student - baseline
    worse = sorted(found.pairs, key=lambda pair: pair[1].total - pair[0].total)[:_SHOWN_CASES]
    return _verdict(
        passed=delta >= least,
        required=f">= {least:+.2f}",
        value=f"{delta:+.3f}",
        summary=f"The student scores {student:.3f}, the baseline {baseline:.3f} on the same cases: a difference of "
        f"{delta:+.3f}, at least {least:+.2f} is asked for.",
        next_step="Training made the model worse than its base: look at the loss curve of lora_adapter and at the "
        "cases below, which lost most.",
        rows=[
            {
                "case": answer.case_id,
                "baseline": round(base.total, 3),
                "student": round(answer.total, 3),
                "difference": round(answer.total - base.total, 3),
                "what cost points": "; ".join(answer.problems[:3]),
            }
            for base, answer in worse
        ],
        numbers={"delta": delta, "baseline mean": baseline},
    )


@checks.register(blocking=True)
def valid_answers(found: Evidence) -> Verdict:
    """So many answers pass the validator as the gate asks for: nothing downstream can use one that does not."""
    share, least = found.summary.valid_share, found.profile.valid_answers
    invalid = [answer for answer in found.student if not answer.valid]
    return _verdict(
        passed=share >= least,
        required=f">= {least:.0%}",
        value=f"{share:.1%}",
        summary=f"{len(invalid)} of {found.summary.cases} answers are not valid, so {share:.1%} are; at least "
        f"{least:.0%} is asked for.",
        next_step="The table gives the validator's reason for each. Nothing downstream can use such an answer: train "
        "until the form is learnt, or decode with the grammar (mode constrained).",
        rows=[
            {
                "case": a.case_id,
                "reason": a.invalid_reason,
                "finish reason": a.finish_reason,
                "score": round(a.total, 3),
            }
            for a in invalid
        ],
        numbers={"valid share": share},
    )


@checks.register(severity="WARN")
def non_inferiority(found: Evidence) -> Verdict:
    """The 95 % interval of the paired difference stays above the margin."""
    difference, margin = found.difference, found.profile.delta_vs_baseline
    lost_most = "the ones that lost most under delta_vs_baseline."
    return Verdict(
        passed=difference.low >= margin,
        required=f"95 % CI >= {margin:+.2f}",
        value=f"[{difference.low:+.3f}, {difference.high:+.3f}]",
        summary=f"With 95 % confidence the student differs from the baseline by {difference.low:+.3f} to "
        f"{difference.high:+.3f} (paired bootstrap over {difference.cases} cases); the lower end should not be under "
        f"{margin:+.2f}. This many cases resolve a difference of {difference.smallest_resolvable:.3f}.",
        next_step=f"The student is worse by more than the margin, not by chance: see {lost_most}"
        if difference.high < margin
        else "The cases leave open whether the student is worse by more than the margin. Add evaluation cases, or look "
        f"at {lost_most}",
        numbers={
            "difference": difference.mean,
            "interval low": difference.low,
            "interval high": difference.high,
            "smallest resolvable difference": min(difference.smallest_resolvable, 1.0),
        },
    )


@checks.register(severity="WARN")
def status_accuracy(found: Evidence) -> Verdict:
    """The status is right more often than by always giving the most frequent one; the metric does not see this."""
    summary, guess = found.summary, majority_share(found.student)
    wrong = [answer for answer in found.student if not answer.status_is_right]
    missed = ", ".join(
        f"{row[status]} of {sum(row.values())} {status}"
        for status, row in confusion_matrix(found.student).items()
        if sum(row.values())
    )
    return _verdict(
        passed=summary.status_accuracy > guess,
        required=f"> {guess:.1%}",
        value=f"{summary.status_accuracy:.1%}",
        summary=f"{summary.cases - len(wrong)} of {summary.cases} answers give the right status "
        f"({summary.status_accuracy:.1%}, macro-F1 {summary.macro_f1:.2f}); always giving the most frequent one would "
        f"be right in {guess:.1%}. Right were {missed}.",
        next_step="The metric does not see this. The table lists the wrong ones; more training rows of the status that "
        "is missed most usually help.",
        rows=[
            {"case": a.case_id, "tier": a.tier, "reference": a.reference_status, "student": a.status or "no status"}
            for a in wrong
        ],
        numbers={"status accuracy": summary.status_accuracy, "macro-F1": summary.macro_f1},
    )


@checks.register(severity="WARN")
def worst_case(found: Evidence) -> Verdict:
    """No case scores under the line that the gate draws."""
    line = found.profile.worst_case
    ordered = sorted(found.student, key=lambda answer: answer.total)
    low, worst = [answer for answer in ordered if answer.total < line], ordered[0]
    return _verdict(
        passed=not low,
        required=f">= {line:.2f}",
        value=f"{worst.total:.3f}",
        summary=f"{len(low)} of {len(ordered)} cases score under {line:.2f}; the worst is {worst.case_id} with "
        f"{worst.total:.3f}.",
        next_step="Open these cases in the HTML report: prompt, both answers, the reference and what cost points.",
        rows=_case_rows(low),
        numbers={"worst score": worst.total, "cases under the line": len(low)},
    )


@checks.step
def eval_report_gate(artifacts: Artifacts) -> Evidence:
    """The two answers tables, the unit of truth, against the gate's criteria."""
    layout = artifacts.layout
    return Evidence(read_scored(layout.baseline_answers), read_scored(layout.student_answers))


evaluation_checks = [eval_report_gate]


def refuse_unpaired(baseline: Sequence[ScoredAnswer], student: Sequence[ScoredAnswer]) -> None:
    """Raise `UserError` unless both sides answered the same cases under the same decoding and metric."""
    faults = []
    one, other = ({answer.case_id for answer in side} for side in (baseline, student))
    if one != other:
        only = sorted(one ^ other)
        faults.append(
            f"{len(only)} cases were answered by one side only ({', '.join(only[:3])}{', …' * (len(only) > 3)})"
        )
    for name, of in (("decoding settings", "decoding"), ("metric version", "metric_version")):
        values = [{str(getattr(answer, of))[:12] for answer in side} for side in (baseline, student)]
        if values[0] != values[1] or len(values[0]) > 1:
            faults.append(f"{name} differ ({', '.join(sorted(values[0]))} and {', '.join(sorted(values[1]))})")
    if faults:
        raise UserError(
            f"Baseline and student cannot be compared: {'; '.join(faults)}. Materialize baseline_report and "
            "eval_report together, with the same settings."
        )


def _verdict(*, passed: bool, rows: Sequence[dict[str, Any]], **parts: Any) -> Verdict:
    """The cases behind a criterion are shown when it fails."""
    return Verdict(passed=passed, rows=[] if passed else rows, **parts)


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
