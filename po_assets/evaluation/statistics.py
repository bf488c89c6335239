"""Statistics of scored answers: means, spread, paired difference with its interval, confusion of statuses.

Plain numbers in, plain numbers out. What they must be belongs to `checks`.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from po_assets.evaluation.scoring import ScoredAnswer
from po_assets.product_owner import STATUSES
from po_assets.text import amount

CONFIDENCE = 0.95
_LEVEL = 0.05
POWER = 0.80
RESAMPLES = 10_000
_NUMBERS_AT_ONCE = 10_000_000
"""Drawn at once by the bootstrap, 80 MB of them, however many cases there are."""
SEED = 42
OTHER_STATUS = "other or none"


@dataclass(frozen=True)
class Summary:
    """What a set of answers comes to."""

    cases: int
    mean: float
    std: float
    """Sample standard deviation (n - 1): the cases stand for all that the student will meet. A little stricter than
    the population's; 0 for a single case."""
    valid_share: float
    answers_with_unknown_ids: int
    answers_with_invented_conflicts: int
    cut_answers: int
    tokens_per_second: float


@dataclass(frozen=True)
class PairedDifference:
    """Student minus baseline over the same cases."""

    mean: float
    low: float
    """Lower end of the two-sided 95 % interval of the mean (bootstrap, BCa)."""
    high: float
    smallest_resolvable: float
    """The true difference that this many cases would find with 80 % probability at the two-sided 5 % level; at most 1,
    the greatest there is."""
    cases: int


@dataclass(frozen=True)
class Judgement:
    """Whether the statuses are right, over the cases that have a right one."""

    cases: int
    right: int
    usual: str
    """The most frequent right status, what a student says that judges nothing."""
    guessed: int
    """How many that would get right."""
    p_value: float
    """Chance of so many right answers or more when each is as likely as a guess (one-sided binomial test)."""
    accuracy: tuple[float, float]
    """95 % interval (Wilson)."""
    macro_f1: float
    macro_f1_interval: tuple[float, float]
    """95 % interval (bootstrap over the cases, percentiles)."""
    recalls: dict[str, tuple[int, int, float, float]]
    """By right status: found, cases, 95 % interval (Wilson)."""
    said: dict[str, int]
    """Answers by the status that they give."""

    @property
    def judges(self) -> bool:
        """Whether it is better than always giving the most frequent status, at the 5 % level."""
        return self.p_value < _LEVEL

    @property
    def known(self) -> bool:
        """Whether it does worse than always saying the most frequent status, or one that is always right could pass."""
        return self.right < self.guessed or (self.cases > 0 and (self.guessed / self.cases) ** self.cases < _LEVEL)

    @property
    def described(self) -> str:
        """Half a sentence: `does not judge: says aligned to every document`."""
        if not self.cases:
            return "is not known to judge: no case has a right status"
        if not self.known:
            usual = f"the right status is {self.usual} in {self.guessed} of {amount(self.cases, 'case')}"
            return f"is not known to judge: {usual}, too few others to tell"
        right = f"{self.right} of {self.cases} statuses are right"
        if self.judges:
            return f"judges: {right}, always saying {self.usual} gets {self.guessed}"
        if len(self.said) == 1:
            return f"does not judge: says {next(iter(self.said))} to every document"
        return f"does not judge: {right}, always saying {self.usual} gets {self.guessed}"

    @property
    def figures(self) -> str:
        """Accuracy, macro-F1 and recalls with their 95 % intervals, in words; empty where nothing is known."""
        if not self.cases:
            return ""
        recalls = ", ".join(
            f"{hits} of {of} {status} ({low:.0%} to {high:.0%})"
            for status, (hits, of, low, high) in self.recalls.items()
        )
        return (
            f"Right are {self.right} of {self.cases} ({self.accuracy[0]:.0%} to {self.accuracy[1]:.0%}; macro-F1 "
            f"{self.macro_f1:.2f}, {self.macro_f1_interval[0]:.2f} to {self.macro_f1_interval[1]:.2f}); found were "
            f"{recalls}. Intervals are of 95 %."
        )


def summarize(answers: Sequence[ScoredAnswer]) -> Summary:
    """Summary over all answers, none left out.

    Raises:
        ValueError: there is none.
    """
    if not answers:
        raise ValueError("there are no answers to summarize")
    totals = np.array([answer.total for answer in answers])
    seconds = sum(answer.seconds for answer in answers)
    return Summary(
        cases=len(answers),
        mean=float(totals.mean()),
        std=float(totals.std(ddof=1)) if len(answers) > 1 else 0.0,
        valid_share=_share(answer.valid for answer in answers),
        answers_with_unknown_ids=sum(bool(answer.unknown_ids) for answer in answers),
        answers_with_invented_conflicts=sum(answer.invented_conflicts > 0 for answer in answers),
        cut_answers=sum(answer.finish_reason == "length" for answer in answers),
        tokens_per_second=sum(answer.tokens for answer in answers) / seconds if seconds else 0.0,
    )


def paired_difference(baseline: Sequence[float], student: Sequence[float]) -> PairedDifference:
    """Difference of the means over pairs, with a bootstrap interval (Efron 1987, bias-corrected and accelerated).

    The smallest resolvable difference is (z(0.975) + z(0.80)) * sd / sqrt(n), the usual formula of a paired design.

    Raises:
        ValueError: the two are not of equal length, or empty.
    """
    from scipy import stats

    if len(baseline) != len(student) or not student:
        raise ValueError(f"{len(student)} student scores cannot be paired with {len(baseline)} baseline scores")
    differences = np.asarray(student, dtype=float) - np.asarray(baseline, dtype=float)
    mean, count = float(differences.mean()), len(differences)
    if count == 1:  # which says nothing of others: any mean is possible
        return PairedDifference(mean, -1.0, 1.0, 1.0, count)
    if np.ptp(differences) < 1e-12:  # no spread: nothing to resample
        return PairedDifference(mean, mean, mean, 0.0, count)
    interval = stats.bootstrap(
        (differences,),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        batch=max(1, _NUMBERS_AT_ONCE // count),
        method="BCa",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    quantiles = stats.norm.ppf(1 - (1 - CONFIDENCE) / 2) + stats.norm.ppf(POWER)
    smallest = float(quantiles * differences.std(ddof=1) / math.sqrt(count))
    return PairedDifference(mean, float(interval.low), float(interval.high), min(smallest, 1.0), count)


def confusion_matrix(answers: Sequence[ScoredAnswer]) -> dict[str, dict[str, int]]:
    """Counts by reference status (rows) and answered status (columns, with one for anything else)."""
    columns = (*STATUSES, OTHER_STATUS)
    matrix = {status: dict.fromkeys(columns, 0) for status in STATUSES}
    for answer in answers:
        if not answer.reference_status:
            continue
        row = matrix.setdefault(answer.reference_status, dict.fromkeys(columns, 0))
        row[answer.status if answer.status in STATUSES else OTHER_STATUS] += 1
    return matrix


def macro_f1(matrix: Mapping[str, Mapping[str, int]]) -> float:
    """Mean F1 over the statuses that occur in the references; a status never answered counts 0."""
    scores = []
    for status, row in matrix.items():
        actual, right = sum(row.values()), row.get(status, 0)
        if actual:
            answered = sum(other.get(status, 0) for other in matrix.values())
            scores.append(2 * right / (actual + answered))
    return sum(scores) / len(scores) if scores else 0.0


def judgement(answers: Sequence[ScoredAnswer]) -> Judgement:
    """Whether the statuses are right more often than by always giving the most frequent one."""
    from scipy import stats

    known = [answer for answer in answers if answer.reference_status in STATUSES]
    if not known:
        return Judgement(0, 0, "", 0, 1.0, (0.0, 1.0), 0.0, (0.0, 1.0), {}, {})
    right = sum(answer.status_is_right for answer in known)
    usual, guessed = Counter(answer.reference_status for answer in known).most_common(1)[0]
    # Where one status is all there is, nothing can be better than saying it.
    test = stats.binomtest(right, len(known), guessed / len(known), alternative="greater")
    matrix, recalls = confusion_matrix(known), {}
    for status, row in matrix.items():
        if cases := sum(row.values()):
            recalls[status] = (row[status], cases, *wilson(row[status], cases))
    return Judgement(
        cases=len(known),
        right=right,
        usual=usual,
        guessed=guessed,
        p_value=float(test.pvalue),
        accuracy=wilson(right, len(known)),
        macro_f1=macro_f1(matrix),
        macro_f1_interval=_macro_f1_interval(matrix),
        recalls=recalls,
        said=dict(Counter(answer.status or "nothing readable" for answer in known).most_common()),
    )


def judgement_rows(judged: Judgement) -> list[dict[str, str]]:
    """A table for people: what, its value, its 95 % interval."""
    rows = [("right statuses", f"{judged.right} of {judged.cases}", judged.accuracy, ".0%")]
    if judged.cases:
        rows.append(("macro-F1", f"{judged.macro_f1:.2f}", judged.macro_f1_interval, ".2f"))
    for status, (hits, of, low, high) in judged.recalls.items():
        rows.append((f"found: {status}", f"{hits} of {of}", (low, high), ".0%"))
    return [
        {"what": what, "value": value, "95 % interval": f"{low:{digits}} to {high:{digits}}"}
        for what, value, (low, high), digits in rows
    ]


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson score, which also holds near 0 and 1); all of [0, 1] without trials."""
    from scipy import stats

    if not trials:
        return 0.0, 1.0
    interval = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def _macro_f1_interval(matrix: Mapping[str, Mapping[str, int]]) -> tuple[float, float]:
    counts = np.array([list(row.values()) for row in matrix.values()])
    draws = np.random.default_rng(SEED).multinomial(counts.sum(), counts.ravel() / counts.sum(), RESAMPLES // 5)
    drawn = draws.reshape(-1, *counts.shape)  # draw, right status, answered status
    actual, answered = drawn.sum(2), drawn.sum(1)[:, : len(matrix)]
    scores = 2 * drawn.diagonal(axis1=1, axis2=2) / np.maximum(actual + answered, 1)
    low, high = np.quantile(
        (scores * (actual > 0)).sum(1) / (actual > 0).sum(1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    )
    return float(low), float(high)


def breakdown(answers: Sequence[ScoredAnswer], by: str) -> dict[str, dict[str, float | None]]:
    """Cases, mean, valid share and status accuracy (None: no case has a right one) by `tier` or `reference_status`."""
    groups: dict[str, list[ScoredAnswer]] = {}
    for answer in answers:
        groups.setdefault(str(getattr(answer, by) or "not given"), []).append(answer)
    return {
        name: {
            "cases": len(group),
            "mean": float(np.mean([answer.total for answer in group])),
            "valid_share": _share(answer.valid for answer in group),
            "status_accuracy": _share(answer.status_is_right for answer in group if answer.reference_status)
            if any(answer.reference_status for answer in group)
            else None,
        }
        for name, group in sorted(groups.items())
    }


def _share(flags: Iterable[bool]) -> float:
    values = list(flags)
    return sum(values) / len(values) if values else 0.0
