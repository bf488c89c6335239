"""The statistics, against figures worked out by hand or by another route."""

import math
import tracemalloc

import numpy as np
import pytest

from po_assets.evaluation.statistics import (
    breakdown,
    confusion_matrix,
    judgement,
    macro_f1,
    paired_difference,
    summarize,
)
from po_assets.product_owner import STATUSES
from po_assets_tests.evaluation.scenes import case, cases, scored


def test_the_spread_is_the_samples() -> None:
    """Divided by n - 1; one answer has none."""
    summary = summarize([scored(item, total=total) for item, total in zip(cases(3), (0.7, 0.8, 0.9), strict=True)])
    assert (summary.mean, summary.std) == pytest.approx((0.8, 0.1))
    assert summarize([scored(case())]).std == 0.0


def test_an_invalid_answer_stays_in_every_figure() -> None:
    """Left out it would flatter the mean."""
    bad = scored(case(2), "nothing", finish_reason="length")
    summary = summarize([scored(case(1), total=0.9), bad])
    assert summary.mean == pytest.approx((0.9 + 1 / 64) / 2)
    assert (summary.valid_share, summary.cut_answers) == (0.5, 1)
    assert summary.tokens_per_second == pytest.approx(600 / 4)


def test_the_interval_covers_the_true_difference_about_as_often_as_it_says() -> None:
    """100 draws of 40 pairs with a true difference of 0.05: a 95 % interval misses it about five times."""
    random = np.random.default_rng(1)
    misses = 0
    for _ in range(100):
        baseline = random.uniform(0.5, 0.9, 40)
        difference = paired_difference(list(baseline), list(baseline + random.normal(0.05, 0.1, 40)))
        misses += not difference.low <= 0.05 <= difference.high
    assert 1 <= misses <= 12


def test_the_interval_is_the_same_every_time_and_pairs_matter() -> None:
    """Seeded; and equal differences leave no doubt, however much the cases differ among themselves."""
    random = np.random.default_rng(2)
    baseline, student = list(random.uniform(0.2, 0.9, 30)), list(random.uniform(0.2, 0.9, 30))
    assert paired_difference(baseline, student) == paired_difference(baseline, student)
    shifted = paired_difference(baseline, [score + 0.1 for score in baseline])
    assert (shifted.low, shifted.mean, shifted.high) == pytest.approx((0.1, 0.1, 0.1))
    assert shifted.smallest_resolvable == 0.0


def test_the_smallest_resolvable_difference_follows_the_formula() -> None:
    """(1.960 + 0.842) * sd / sqrt(n), at most 1; one pair resolves nothing."""
    differences = [0.1, -0.1] * 20
    found = paired_difference([0.5] * 40, [0.5 + d for d in differences]).smallest_resolvable
    assert found == pytest.approx(2.8016 * float(np.std(differences, ddof=1)) / math.sqrt(40), rel=1e-3)
    assert paired_difference([0.5], [0.6]).smallest_resolvable == 1.0
    assert paired_difference([0.0, 1.0], [1.0, 0.0]).smallest_resolvable == 1.0


def test_the_interval_of_macro_f1_is_that_of_cases_drawn_one_by_one() -> None:
    """A cell of the confusion matrix is drawn as often as its cases would be."""
    random = np.random.default_rng(3)
    truth, said = random.integers(0, 3, 40), random.integers(0, 4, 40)
    names = [*STATUSES, "maybe"]
    answers = [
        scored(case(i), reference_status=STATUSES[t], status=names[s])
        for i, (t, s) in enumerate(zip(truth, said, strict=True))
    ]
    scores = []
    for _ in range(2_000):
        drawn = random.integers(0, 40, 40)
        t, s = truth[drawn], said[drawn]
        of = [2 * ((t == k) & (s == k)).sum() / ((t == k).sum() + (s == k).sum()) for k in set(t.tolist())]
        scores.append(sum(of) / len(of))
    assert judgement(answers).macro_f1_interval == pytest.approx(np.quantile(scores, [0.025, 0.975]), abs=0.02)


def test_many_cases_take_no_more_memory() -> None:
    """The same interval, drawn in parts."""
    random = np.random.default_rng(4)
    one, other = random.random(3_000), random.random(3_000)
    tracemalloc.start()
    found = paired_difference(list(one), list(other))
    assert tracemalloc.get_traced_memory()[1] < 500_000_000
    tracemalloc.stop()
    assert found.low < found.mean < found.high


@pytest.mark.parametrize("student", [[], [0.5, 0.6]])
def test_unequal_sides_are_refused(student: list[float]) -> None:
    """A pair is one case answered twice."""
    with pytest.raises(ValueError, match="cannot be paired with 1 baseline scores"):
        paired_difference([0.5], student)


def test_the_confusion_matrix_has_a_place_for_answers_without_status() -> None:
    """Rows are the right statuses, columns the given ones."""
    given = [("aligned", "aligned"), ("aligned", "conflicts"), ("conflicts", None), ("needs_adjustment", "maybe")]
    answers = [scored(case(i), reference_status=right, status=said) for i, (right, said) in enumerate(given)]
    matrix = confusion_matrix(answers)
    assert matrix["aligned"] == {"aligned": 1, "needs_adjustment": 0, "conflicts": 1, "other or none": 0}
    assert matrix["conflicts"]["other or none"] == 1
    assert matrix["needs_adjustment"]["other or none"] == 1


def test_macro_f1_by_hand() -> None:
    """aligned: 2*2/(3+3), conflicts: 2*1/(2+2), the third never occurs and is left out."""
    matrix = {
        "aligned": {"aligned": 2, "conflicts": 1},
        "conflicts": {"aligned": 1, "conflicts": 1},
        "needs_adjustment": {"aligned": 0, "conflicts": 0},
    }
    assert macro_f1(matrix) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert macro_f1({}) == 0.0


def test_guessing_the_most_frequent_status_is_the_yardstick() -> None:
    """Three of four here."""
    found = judgement([scored(case(i), reference_status="aligned" if i else "conflicts") for i in range(4)])
    assert (found.usual, found.guessed, found.cases) == ("aligned", 3, 4)


def test_the_breakdown_covers_every_answer_once() -> None:
    """By tier."""
    answers = [scored(item) for item in cases(7)]
    groups = breakdown(answers, "tier")
    assert set(groups) == {"simple", "medium", "corporate"}
    assert sum(group["cases"] or 0 for group in groups.values()) == 7


def test_no_share_of_right_statuses_is_given_where_no_case_has_one() -> None:
    """Nothing is known, which is not 0 %."""
    groups = breakdown([scored(case(1)), scored(case(2), reference_status="")], "reference_status")
    assert {name: group["status_accuracy"] for name, group in groups.items()} == {"aligned": 1.0, "not given": None}
