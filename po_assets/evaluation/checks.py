"""The checks of `eval_report`, which are the criteria of the gate: one function each, with its sentence and next step.

Computed from scored answers alone. Which of them block is the gate profile's choice. What follows from the verdicts
(the record, the promotion) belongs to `gate`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, wraps
from typing import Any

import dagster as dg

from po_assets.dag import Artifacts, AssetChecks, Verdict
from po_assets.errors import UserError
from po_assets.evaluation.consumers import Compared, UnderPrompt, compare, read_consumers, worst_answers
from po_assets.evaluation.scoring import ScoredAnswer, read_scored
from po_assets.evaluation.settings import GateProfile
from po_assets.evaluation.statistics import (
    Judgement,
    PairedDifference,
    Summary,
    judgement,
    paired_difference,
    summarize,
)
from po_assets.text import amount, shown, verb

_NOT_ASKED = "not asked"
"""The value of a criterion of which nothing is known."""
_NO_STATUS = "No case has a right status, so nothing is known of the student's judgement."
_GIVE_STATUS = "Give the cases a reference answer or a status."
_SHOWN_CASES = 10
_NAME = 36
"""Characters of a case's name or tier in a table, enough for a UUID: longer ones would push the rest off the page."""


@dataclass(frozen=True)
class Evidence:
    """What the gate looks at: two sides that answered the same cases in the same way.

    Raises:
        UserError: they do not pair.
    """

    baseline: Sequence[ScoredAnswer]
    student: Sequence[ScoredAnswer]
    profile: GateProfile = field(default_factory=GateProfile)
    consumers: Sequence[UnderPrompt] = ()
    """The student again, under consumers' prompts."""

    def __post_init__(self) -> None:
        _refuse_unpaired(self.baseline, self.student)

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

    @cached_property
    def compared(self) -> list[Compared]:
        """Consumers' prompts against the own one."""
        return compare(self.student, self.consumers)

    @cached_property
    def judgement(self) -> Judgement:
        """Whether the student's statuses are right."""
        return judgement(self.student)

    @cached_property
    def about_others(self) -> str:
        """Half a sentence where more answers are about something else than may be invalid; else empty."""
        count = sum(bool(answer.about) for answer in self.student)
        if 1 - count / len(self.student) >= self.profile.valid_answers:
            return ""
        return f"{count} of {amount(len(self.student), 'answer')} {verb(count, 'is', 'are')} not about the own case"


checks = AssetChecks[Evidence]("eval_report")


def criterion(judge: Callable[[Evidence], Verdict]) -> Callable[[Evidence], Verdict]:
    """Register a check with the severity of the profile, and its name; the cases behind it are shown when it fails."""

    @wraps(judge)
    def under_the_profile(found: Evidence) -> Verdict:
        verdict = judge(found)
        return replace(
            verdict,
            rows=[] if verdict.passed else verdict.rows,
            severity="ERROR" if found.profile.blocks(judge.__name__) else "WARN",
            extra={"gate profile": dg.MetadataValue.text(found.profile.name)},
        )

    return checks.register(blocking=True)(under_the_profile)


@criterion
def case_count(found: Evidence) -> Verdict:
    """All evaluation cases that the gate asks for count; one without an answer counts as an empty one."""
    profile, cases = found.profile, found.summary.cases
    exact = profile.case_count is not None
    wanted = profile.case_count if profile.case_count is not None else profile.minimum_cases
    return Verdict(
        passed=cases == wanted if exact else cases >= wanted,
        required=f"{'=' if exact else '>='} {wanted}",
        value=str(cases),
        summary=f"{amount(cases, 'case')} {verb(cases, 'was', 'were')} evaluated, {'' if exact else 'at least '}"
        f"{wanted} {verb(wanted, 'is', 'are')} wanted.",
        next_step=f"Give evaluation/po_eval_cases.jsonl (in a project: cases/) its {wanted} cases and materialize "
        "eval_cases: with fewer, a difference of 0.03 cannot be told from chance. For cases of your own, give the gate "
        "a profile of your own (resource `gate`: name, case_count).",
        numbers={"cases": cases},
    )


@criterion
def mean_score(found: Evidence) -> Verdict:
    """The student's mean score over every case is at least what the gate asks for."""
    mean, least = found.summary.mean, found.profile.mean_score
    return Verdict(
        passed=mean >= least,
        required=f">= {least:.2f}",
        value=(value := _told(mean, least, ".3f")),
        summary=f"The student scores {value} on average over {amount(found.summary.cases, 'case')}, none left out; at "
        f"least {least:.2f} is asked for.",
        next_step="The check's table lists the lowest cases with what cost them points; open them in the HTML report. "
        "Where blocks do not parse or sections are missing, train longer; where requirements are not covered, look at "
        "the data.",
        rows=_case_rows(sorted(found.student, key=lambda answer: answer.total)[:_SHOWN_CASES]),
        of=len(found.student),
        numbers={"mean score": mean},
    )


@criterion
def score_std(found: Evidence) -> Verdict:
    """The scores' sample standard deviation is at most what the gate allows."""
    std, mean, most = found.summary.std, found.summary.mean, found.profile.score_std
    return Verdict(
        passed=std <= most,
        required=f"<= {most:.2f}",
        value=(value := _told(std, most, ".3f")),
        summary=f"The scores spread by {value} (sample standard deviation) around {mean:.3f}, at most {most:.2f} is "
        "allowed.",
        next_step="The check's table lists the cases farthest from the mean. A few very low ones are usually answers "
        "that were cut or do not parse; see their problems.",
        rows=_case_rows(sorted(found.student, key=lambda answer: -abs(answer.total - mean))[:_SHOWN_CASES]),
        of=len(found.student),
        numbers={"standard deviation": std},
    )


@criterion
def delta_vs_baseline(found: Evidence) -> Verdict:
    """The student's mean is not below the baseline's by more than the gate allows."""
    student, baseline, least = found.summary.mean, found.baseline_summary.mean, found.profile.delta_vs_baseline
    delta = student - baseline
    worse = sorted(found.pairs, key=lambda pair: pair[1].total - pair[0].total)[:_SHOWN_CASES]
    return Verdict(
        passed=delta >= least,
        required=f">= {least:+.2f}",
        value=(value := _told(delta, least, "+.3f")),
        summary=f"The student scores {student:.3f}, the baseline {baseline:.3f} on the same cases: a difference of "
        f"{value}, at least {least:+.2f} is asked for.",
        next_step=f"Training {'made the model worse than its base' if delta < 0 else 'brought too little'}: look at "
        "the loss curve of lora_adapter and at the cases in the check's table, which lost most.",
        rows=[
            {
                "case": shown(answer.case_id, _NAME),
                "baseline": round(base.total, 3),
                "student": round(answer.total, 3),
                "difference": round(answer.total - base.total, 3),
                "what cost points": "; ".join(answer.problems[:3]),
            }
            for base, answer in worse
        ],
        of=len(found.student),
        numbers={"delta": delta, "baseline mean": baseline},
    )


@criterion
def valid_answers(found: Evidence) -> Verdict:
    """So many answers pass the validator as the gate asks for: nothing downstream can use one that does not."""
    share, least = found.summary.valid_share, found.profile.valid_answers
    invalid = [answer for answer in found.student if not answer.valid]
    return Verdict(
        passed=share >= least,
        required=f">= {least:.0%}",
        value=(value := _told(share, least, ".1%")),
        summary=f"{len(found.student) - len(invalid)} of {len(found.student)} answers are valid ({value}); at "
        f"least {least:.0%} is asked for.",
        next_step="The check's table gives the validator's reason for each. Nothing downstream can use such an answer: "
        "train until the form is learnt, or decode with the grammar (mode constrained).",
        rows=[
            {
                "case": shown(a.case_id, _NAME),
                "reason": a.invalid_reason,
                "finish reason": a.finish_reason,
                "score": round(a.total, 3),
            }
            for a in invalid
        ],
        numbers={"valid share": share},
    )


@criterion
def judges(found: Evidence) -> Verdict:
    """The statuses are right more often than by always giving the most frequent one (binomial test, one-sided, 5 %)."""
    judged = found.judgement
    without = len(found.student) - judged.cases
    left_out = (
        f" {amount(without, 'case')} without a right status {verb(without, 'is', 'are')} left out." if without else ""
    )
    return Verdict(
        passed=judged.judges,
        required="p < 0.05",
        value=f"p = {_told(judged.p_value, 0.05, '.2g')}" if judged.cases else "no status",
        summary=f"The student {judged.described}. {judged.figures}{left_out}" if judged.cases else _NO_STATUS,
        next_step="Do not rely on the status of this student's reviews: have a person judge. More training rows of the "
        "statuses that it misses, and cases to see it by, are what helps."
        if judged.known
        else f"Add cases whose right status is another than {judged.usual}."
        if judged.cases
        else _GIVE_STATUS,
        rows=_status_rows(found.student),
        numbers={"right statuses": judged.right, "p value": judged.p_value, "macro-F1": judged.macro_f1},
    )


@criterion
def non_inferiority(found: Evidence) -> Verdict:
    """The 95 % interval of the paired difference stays above the margin."""
    difference, margin = found.difference, -found.profile.margin
    lost_most = "the ones that lost most under delta_vs_baseline."
    return Verdict(
        passed=difference.low >= margin,
        required=f"95 % CI >= {margin:+.2f}",
        value=f"[{difference.low:+.3f}, {difference.high:+.3f}]",
        summary=f"With 95 % confidence the student differs from the baseline by {difference.low:+.3f} to "
        f"{difference.high:+.3f} (paired bootstrap over {amount(difference.cases, 'case')}); the lower end should not "
        f"be under {margin:+.2f}. This many cases resolve a difference of {difference.smallest_resolvable:.3f}.",
        next_step=f"The student is worse by more than the margin, not by chance: see {lost_most}"
        if difference.high < margin
        else "The cases leave open whether the student is worse by more than the margin. Add evaluation cases, or look "
        f"at {lost_most}",
        numbers={
            "difference": difference.mean,
            "interval low": difference.low,
            "interval high": difference.high,
            "smallest resolvable difference": difference.smallest_resolvable,
        },
    )


@criterion
def status_accuracy(found: Evidence) -> Verdict:
    """The status is right more often than by always giving the most frequent one; the metric does not see this."""
    judged = found.judgement
    if not judged.cases:
        return Verdict(False, _NO_STATUS, _GIVE_STATUS, required="a right status", value="no status")
    share, guess = judged.right / judged.cases, judged.guessed / judged.cases
    right = ", ".join(f"{hits} of {of} {status}" for status, (hits, of, _, _) in judged.recalls.items())
    return Verdict(
        passed=judged.right > judged.guessed,
        required=f"more than {guess:.1%}",
        value=(value := _told(share, guess, ".1%")),
        summary=f"{judged.right} of {judged.cases} answers give the right status "
        f"({value}, macro-F1 {judged.macro_f1:.2f}); always giving the most frequent one would "
        f"be right in {guess:.1%}. Right were {right}.",
        next_step="The metric does not see this. The check's table lists the wrong ones; more training rows of the "
        "status that is missed most usually help.",
        rows=_status_rows(found.student),
        numbers={"status accuracy": share, "macro-F1": judged.macro_f1},
    )


@criterion
def worst_case(found: Evidence) -> Verdict:
    """No case scores under the line that the gate draws."""
    line = found.profile.worst_case
    ordered = sorted(found.student, key=lambda answer: answer.total)
    low, worst = [answer for answer in ordered if answer.total < line], ordered[0]
    return Verdict(
        passed=not low,
        required=f">= {line:.2f}",
        value=(value := _told(worst.total, line, ".3f")),
        summary=f"{len(low) or 'None'} of {amount(len(ordered), 'case')} {verb(len(low), 'scores', 'score')} under "
        f"{line:.2f}; the lowest is {shown(worst.case_id)} with {value}.",
        next_step="Open these cases in the HTML report: prompt, both answers, the reference and what cost points.",
        rows=_case_rows(low),
        numbers={"worst score": worst.total, "cases under the line": len(low)},
    )


@criterion
def own_questions(found: Evidence) -> Verdict:
    """Answers are about their own case, by the words that they share with its question; no score sees this."""
    least, answers = found.profile.valid_answers, amount(len(found.student), "answer")
    others = [answer for answer in found.student if answer.about]
    share = 1 - len(others) / len(found.student)
    return Verdict(
        passed=not found.about_others,
        required=f">= {least:.0%}",
        value=_told(share, least, ".1%"),
        summary=f"{len(others) or 'None'} of {answers} {verb(len(others), 'shares', 'share')} at least twice as much "
        "with the question of another case as with the own one (rare words count most).",
        next_step="Open these cases in the HTML report: such an answer was learnt by heart, or belongs to another "
        "case. Train with rows of more different products, or put the answers back to their cases.",
        rows=[{"case": shown(a.case_id, _NAME), "shares more with": shown(a.about, _NAME)} for a in others],
        numbers={"answers about something else": len(others)},
    )


@criterion
def consumer_prompts(found: Evidence) -> Verdict:
    """Under each consumer's prompt, too, scores and valid answers are what the gate asks for, on some of the cases."""
    least, valid = found.profile.mean_score, found.profile.valid_answers
    good = [one for one in found.compared if one.summary.mean >= least and one.summary.valid_share >= valid]
    faults = [f"Through {one.prompt} it could not be asked: {one.fault}" for one in found.consumers if one.fault]
    said = [one.described for one in found.compared]
    lowest = min(found.compared, key=lambda one: one.summary.mean, default=None)
    nothing = "No consumer's prompt was asked: what the gate says holds under the own prompt only."
    return Verdict(
        # Where nothing was asked, nothing is known; only a profile that wants to know fails for it.
        passed=len(good) == len(found.consumers) if found.consumers else not found.profile.blocks("consumer_prompts"),
        required=f">= {least:.2f}, {valid:.0%} valid",
        value=f"{lowest.summary.mean:.3f}, {lowest.summary.valid_share:.0%}" if lowest else _NOT_ASKED,
        summary=" ".join([*said, *faults]) or nothing,
        next_step="The check's table has the answers that lost most beside those under the own prompt. Ask the student "
        "with the prompt that travels with it; or train it under these prompts too (prompt_mix in the resource "
        "recipe), or make one of them the own prompt (template in the resource prompt)."
        if found.consumers
        else "Name the prompts in consumer_prompts, and how many cases in consumer_cases (resource prompt).",
        rows=[
            {
                "prompt and case": f"{one['prompt']}, {one['case']}",
                "score": f"{one['score']}, own {one['own score']}",
                "what cost points": one["what cost points"],
                "own answer": one["answer under the own prompt"],
                "answer": one["answer"],
            }
            for one in worst_answers(found.student, found.consumers)
        ],
        of=sum(len(one.pairs) for one in found.compared),
        numbers={f"mean score ({one.prompt})": one.summary.mean for one in found.compared},
    )


@checks.step
def eval_report_gate(artifacts: Artifacts, gate: GateProfile) -> Evidence:
    """The two answers tables, the unit of truth, against the gate's criteria."""
    layout = artifacts.layout
    student = read_scored(layout.student_answers)
    consumers = read_consumers(layout.consumer_answers, student)
    return Evidence(read_scored(layout.baseline_answers), student, gate, consumers)


evaluation_checks = [eval_report_gate]


def criterion_verdict(check: Mapping[str, Any]) -> str:
    """The word for a criterion as the gate's record has it: pass, FAIL, warning, or - where nothing was asked."""
    if check["passed"]:
        return "-" if check["value"] == _NOT_ASKED else "pass"
    return "FAIL" if check["severity"] == "ERROR" else "warning"


def _refuse_unpaired(baseline: Sequence[ScoredAnswer], student: Sequence[ScoredAnswer]) -> None:
    """Raise `UserError` unless both sides answered the same cases under the same decoding and metric."""
    faults = []
    one, other = ({answer.case_id for answer in side} for side in (baseline, student))
    if one != other:
        only = sorted(one ^ other)
        count = f"{amount(len(only), 'case')} {verb(len(only), 'was', 'were')}"
        faults.append(f"{count} answered by one side only ({', '.join(only[:3])}{', …' * (len(only) > 3)})")
    for name, of in (("decoding settings", "decoding"), ("metric version", "metric_version")):
        values = [{str(getattr(answer, of))[:12] for answer in side} for side in (baseline, student)]
        if values[0] != values[1] or len(values[0]) > 1:
            faults.append(f"{name} differ ({', '.join(sorted(values[0]))} and {', '.join(sorted(values[1]))})")
    if faults:
        raise UserError(
            f"Baseline and student cannot be compared: {'; '.join(faults)}. Materialize baseline_report and "
            "eval_report together, with the same settings."
        )


def _told(value: float, limit: float, form: str) -> str:
    """The value in this form, with as many digits more as it takes to tell it from the limit."""
    head, digits, kind = form[:-2], int(form[-2]), form[-1]
    forms = [f"{head}{more}{kind}" for more in range(digits, 10)]
    return next((f"{value:{one}}" for one in forms if f"{value:{one}}" != f"{limit:{one}}"), f"{value:{form}}")


def _status_rows(answers: Sequence[ScoredAnswer]) -> list[dict[str, Any]]:
    """The wrong ones."""
    return [
        {
            "case": shown(a.case_id, _NAME),
            "tier": shown(a.tier, _NAME),
            "right status": a.reference_status,
            "given": shown(a.status or "no status", _NAME),
        }
        for a in answers
        if a.reference_status and not a.status_is_right
    ]


def _case_rows(answers: Sequence[ScoredAnswer]) -> list[dict[str, Any]]:
    return [
        {
            "case": shown(answer.case_id, _NAME),
            "tier": shown(answer.tier, _NAME),
            "score": round(answer.total, 3),
            "what cost points": "; ".join(answer.problems[:3]) or "nothing",
        }
        for answer in answers
    ]
