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

CONFIDENCE = 0.95
POWER = 0.80
RESAMPLES = 10_000
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
    minimum: float
    median: float
    valid_share: float
    status_accuracy: float
    macro_f1: float
    answers_with_unknown_ids: int
    answers_with_invented_conflicts: int
    cut_answers: int
    mean_tokens: float
    tokens_per_second: float


@dataclass(frozen=True)
class PairedDifference:
    """Student minus baseline over the same cases."""

    mean: float
    low: float
    """Lower end of the two-sided 95 % interval of the mean (bootstrap, BCa)."""
    high: float
    smallest_resolvable: float
    """The true difference that this many cases would find with 80 % probability at the two-sided 5 % level."""
    cases: int


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
        minimum=float(totals.min()),
        median=float(np.median(totals)),
        valid_share=_share(answer.valid for answer in answers),
        status_accuracy=_share(answer.status_is_right for answer in answers),
        macro_f1=macro_f1(confusion_matrix(answers)),
        answers_with_unknown_ids=sum(bool(answer.unknown_ids) for answer in answers),
        answers_with_invented_conflicts=sum(answer.invented_conflicts > 0 for answer in answers),
        cut_answers=sum(answer.finish_reason == "length" for answer in answers),
        mean_tokens=float(np.mean([answer.tokens for answer in answers])),
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
    if np.ptp(differences) < 1e-12:  # no spread (or one case): nothing to resample
        return PairedDifference(mean, mean, mean, math.inf if count == 1 else 0.0, count)
    interval = stats.bootstrap(
        (differences,),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method="BCa",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    quantiles = stats.norm.ppf(1 - (1 - CONFIDENCE) / 2) + stats.norm.ppf(POWER)
    smallest = float(quantiles * differences.std(ddof=1) / math.sqrt(count))
    return PairedDifference(mean, float(interval.low), float(interval.high), smallest, count)


def confusion_matrix(answers: Sequence[ScoredAnswer]) -> dict[str, dict[str, int]]:
    """Counts by reference status (rows) and answered status (columns, with one for anything else)."""
    columns = (*STATUSES, OTHER_STATUS)
    matrix = {status: dict.fromkeys(columns, 0) for status in STATUSES}
    for answer in answers:
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


def majority_share(answers: Sequence[ScoredAnswer]) -> float:
    """The status accuracy of always giving the most frequent status."""
    counts = Counter(answer.reference_status for answer in answers)
    return max(counts.values()) / len(answers)


def breakdown(answers: Sequence[ScoredAnswer], by: str) -> dict[str, dict[str, float]]:
    """Cases, mean, valid share and status accuracy by `tier` or `reference_status`."""
    groups: dict[str, list[ScoredAnswer]] = {}
    for answer in answers:
        groups.setdefault(str(getattr(answer, by)), []).append(answer)
    return {
        name: {
            "cases": len(group),
            "mean": float(np.mean([answer.total for answer in group])),
            "valid_share": _share(answer.valid for answer in group),
            "status_accuracy": _share(answer.status_is_right for answer in group),
        }
        for name, group in sorted(groups.items())
    }


def _share(flags: Iterable[bool]) -> float:
    values = list(flags)
    return sum(values) / len(values)
