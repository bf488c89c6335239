"""The gate: each threshold exactly where it is written, and messages that say cases, numbers and next step."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from po_assets.dag import GateRecord, Verdict, check_description
from po_assets.errors import UserError
from po_assets.evaluation.checks import Evidence, checks
from po_assets.evaluation.gate import judge
from po_assets.evaluation.scoring import ScoredAnswer
from po_assets.evaluation.settings import CRITERIA, SCORES, GateProfile
from po_assets_tests.evaluation.scenes import both_sides, case, scored

GOOD = [0.88 + 0.002 * (number % 10) for number in range(40)]
LITERAL = GateProfile()
Sides = tuple[list[ScoredAnswer], list[ScoredAnswer]]


def sides(
    totals: Sequence[float] = GOOD, baseline: list[float] | None = None, first: int = 40, **changes: Any
) -> Sides:
    """Both sides with these scores; `changes` overwrite what came out of the student's `first` answers."""
    before, after = both_sides(list(totals), baseline)
    return before, [replace(answer, **changes) for answer in after[:first]] + after[first:]


def verdicts(given: Sides, profile: GateProfile = LITERAL) -> dict[str, Verdict]:
    return checks.verdicts(Evidence(*given, profile))


def record(given: Sides, profile: GateProfile = LITERAL) -> GateRecord:
    return judge(Evidence(*given, profile), "a" * 64, cases_sha256="c" * 64, decoding="greedy")


def test_a_good_student_passes_every_criterion() -> None:
    """In the order of the design; scores block, the rest warns."""
    found = verdicts(sides())
    assert tuple(found) == checks.names == CRITERIA
    assert [name for name, verdict in found.items() if not verdict.passed] == []
    assert tuple(name for name, verdict in found.items() if verdict.severity == "ERROR") == SCORES
    assert " ".join(CRITERIA) == (
        "case_count mean_score score_std delta_vs_baseline valid_answers "
        "judges non_inferiority status_accuracy worst_case own_questions consumer_prompts"
    )
    assert record(sides()).passed


@pytest.mark.parametrize(
    ("name", "given", "passed", "required", "value"),
    [
        ("mean_score", {"totals": [0.82] * 40}, True, ">= 0.82", "0.820"),
        ("mean_score", {"totals": [0.8199] * 40}, False, ">= 0.82", "0.8199"),
        ("delta_vs_baseline", {"totals": [0.85] * 40, "baseline": [0.75] * 40}, True, ">= -0.03", "+0.100"),
        ("delta_vs_baseline", {"totals": [0.85] * 40, "baseline": [0.879] * 40}, True, ">= -0.03", "-0.029"),
        ("delta_vs_baseline", {"totals": [0.85] * 40, "baseline": [0.881] * 40}, False, ">= -0.03", "-0.031"),
        ("valid_answers", {"first": 4, "valid": False}, True, ">= 90%", "90.0%"),
        ("valid_answers", {"first": 5, "valid": False}, False, ">= 90%", "87.5%"),
        ("valid_answers", {"totals": GOOD * 25, "first": 101, "valid": False}, False, ">= 90%", "89.9%"),
        ("valid_answers", {"totals": GOOD * 75, "first": 301, "valid": False}, False, ">= 90%", "89.97%"),
        ("own_questions", {"first": 4, "about": "EVAL-40"}, True, ">= 90%", "90.0%"),
        ("own_questions", {"first": 5, "about": "EVAL-40"}, False, ">= 90%", "87.5%"),
        ("judges", {"first": 2, "status": "conflicts"}, True, "p < 0.05", "p = 0.0079"),
        ("judges", {"first": 4, "status": "conflicts"}, False, "p < 0.05", "p = 0.076"),
    ],
)
def test_each_threshold_is_exactly_where_it_is_written(
    name: str, given: dict[str, Any], passed: bool, required: str, value: str
) -> None:
    """The limit itself is enough, and no value is rounded to it; a student may be better by any amount."""
    found = verdicts(sides(**given))[name]
    assert (found.passed, found.required, found.value) == (passed, required, value)


FAILED = [
    (
        "case_count",
        {"totals": GOOD[:39]},
        ["39 cases were evaluated, 40 are wanted.", "materialize eval_cases"],
        [],
    ),
    (
        "mean_score",
        {"totals": [0.5] * 7 + [0.1] + [0.5] * 32, "problems": ["the VISION block is missing"]},
        ["at least 0.82 is asked for", "open them in the HTML report"],
        [{"case": "EVAL-08", "score": 0.1, "what cost points": "the VISION block is missing"}],
    ),
    (
        "score_std",
        {"totals": [0.95] * 36 + [0.4] * 4},
        ["at most 0.10 is allowed"],
        [{"case": f"EVAL-{number}"} for number in (37, 38, 39, 40)],
    ),
    (
        "delta_vs_baseline",
        {"totals": [0.95] * 20 + [0.85] * 19 + [0.6], "baseline": [0.95] * 40},
        ["Training made the model worse than its base"],
        [{"case": "EVAL-40", "baseline": 0.95, "student": 0.6, "difference": -0.35}],
    ),
    (
        "valid_answers",
        {"first": 5, "valid": False, "invalid_reason": "the VISION has no product_name"},
        ["35 of 40 answers are valid (87.5%); at least 90% is asked for."],
        [{"case": f"EVAL-0{number}", "reason": "the VISION has no product_name"} for number in range(1, 6)],
    ),
    (
        "non_inferiority",
        {"totals": [0.91, 0.79] * 20, "baseline": [0.79, 0.91] * 20},
        ["This many cases resolve a difference of 0.054.", "The cases leave open whether the student is worse"],
        [],
    ),
    (
        "status_accuracy",
        {"status": "aligned"},
        ["32 of 40 answers give the right status", "0 of 8 needs_adjustment"],
        [{"case": f"EVAL-{5 * number:02}", "right status": "needs_adjustment"} for number in range(1, 9)],
    ),
    (
        "worst_case",
        {"totals": [*GOOD[:39], 0.65]},
        ["1 of 40 cases scores under 0.70; the lowest is EVAL-40 with 0.650."],
        [{"case": "EVAL-40"}],
    ),
]


@pytest.mark.parametrize(("name", "given", "said", "rows"), FAILED, ids=[one[0] for one in FAILED])
def test_what_fails_says_the_cases_the_numbers_and_the_next_step(
    name: str, given: dict[str, Any], said: list[str], rows: list[dict[str, Any]]
) -> None:
    """Also where mean and spread are fine, or the metric rewards what is wrong; a warning fails no gate."""
    found = verdicts(sides(**given))[name]
    assert (found.passed, found.severity) == (False, "ERROR" if name in SCORES else "WARN")
    assert [text for text in said if text not in check_description(found)] == []
    shown = list(found.rows[: len(rows)])
    assert [row | wanted for row, wanted in zip(shown, rows, strict=True)] == shown
    assert name not in {"valid_answers", "status_accuracy"} or len(found.rows) == len(rows)  # the wrong ones alone
    assert record(sides(**given)).passed == (name not in SCORES)


def test_sides_that_answered_other_cases_or_in_another_way_are_refused() -> None:
    """Every mismatch at once, with the way out."""
    baseline, student = sides(decoding="other")
    with pytest.raises(ValueError, match="cannot be compared") as error:
        Evidence(baseline, [scored(case(99), decoding="other"), *student[1:]])
    assert "2 cases were answered by one side only (EVAL-01, EVAL-99)" in str(error.value)
    assert "decoding settings differ (dddddddddddd and other)" in str(error.value)
    assert "Materialize baseline_report and eval_report together" in str(error.value)


def test_a_student_that_always_says_the_same_does_not_judge() -> None:
    """Said in the verdict's first sentence; a warning in the literal gate, in the profile reviewer a failure."""
    given = sides(status="aligned")
    found = verdicts(given)["judges"]
    assert (found.passed, found.severity) == (False, "WARN")
    assert found.summary.startswith(
        "The student does not judge: says aligned to every document. Right are 32 of 40 (65%"
    )
    assert "32 of 32 aligned (89% to 100%), 0 of 8 needs_adjustment (0% to 32%)" in found.summary
    literal, reviewer = record(given), record(given, GateProfile(name="reviewer"))
    assert literal.passed
    assert literal.context["sentence"] == (
        "The student passes the score thresholds; does not judge: says aligned to every document."
    )
    assert (reviewer.passed, list(reviewer.failed)) == (False, ["judges"])
    assert reviewer.context["profile"]["name"] == "reviewer"


@pytest.mark.parametrize(("wrong", "judges"), [(0, "judges"), (4, "does not judge")])
def test_judging_is_more_than_luck(wrong: int, judges: str) -> None:
    """32 of 40 are right by always saying aligned: 36 are no better at the 5 % level."""
    given = sides(first=wrong, status="conflicts")
    said = f"{judges}: {40 - wrong} of 40 statuses are right, always saying aligned gets 32"
    assert said in verdicts(given)["judges"].summary
    assert said in record(given).context["sentence"]


def test_of_a_student_that_is_always_right_nobody_says_that_it_does_not_judge() -> None:
    """Where cases want one status, or are few, it cannot be told from one that always says the most frequent status."""
    for count, usual in [(4, "4 of 4 cases"), (5, "4 of 5 cases"), (1, "1 of 1 case")]:
        found = verdicts(sides(GOOD[:count]))["judges"]
        assert not found.passed
        said = f"The student is not known to judge: the right status is aligned in {usual}, too few others to tell."
        assert found.summary.startswith(said)
        assert found.next_step == "Add cases whose right status is another than aligned."
    worse = verdicts(sides(GOOD[:4], status="conflicts"))["judges"]
    assert "does not judge: says conflicts to every document" in worse.summary


def test_answers_to_other_questions_are_told_in_the_first_sentence() -> None:
    """No score sees it; a profile may block on it."""
    given = sides(about="EVAL-40", first=39)
    found = verdicts(given)["own_questions"]
    assert (found.passed, found.severity, len(found.rows)) == (False, "WARN", 39)
    assert record(given).context["sentence"].endswith("; 39 of 40 answers are not about the own case.")
    strict = record(given, GateProfile(name="strict", blocking=["own_questions"]))
    assert "fails the gate (own_questions)" in strict.context["sentence"]


def test_a_gain_that_is_too_small_is_not_called_a_loss() -> None:
    """A profile may ask for a gain."""
    found = verdicts(sides([0.85] * 40, [0.84] * 40), GateProfile(name="gain", delta_vs_baseline=0.05))
    assert "Training brought too little" in found["delta_vs_baseline"].next_step


def test_one_case_tells_nothing_of_others() -> None:
    """Its difference has no interval; the figures stay numbers that JSON can hold."""
    found = verdicts(sides([0.9], [0.5]))["non_inferiority"]
    assert (found.passed, found.value) == (False, "[-1.000, +1.000]")
    assert "resolve a difference of 1.000" in found.summary


def test_cases_without_a_right_status_are_counted_and_left_out() -> None:
    """Where none has one, nothing is known of the judgement."""
    found = verdicts(sides(first=10, reference_status=""))
    assert "10 cases without a right status are left out" in found["judges"].summary
    assert "30 of 30 answers give the right status" in found["status_accuracy"].summary
    none = sides(reference_status="")
    assert not verdicts(none)["judges"].passed
    assert "No case has a right status" in verdicts(none)["status_accuracy"].summary
    assert "is not known to judge: no case has a right status" in record(none).context["sentence"]
    assert record(none).passed


def test_the_interval_of_the_difference_is_told_as_numbers() -> None:
    """As much scatter as this leaves the margin between its ends."""
    scatter = [0.06, -0.06] * 20
    given = sides([0.85 + by for by in scatter], [0.85 - by for by in scatter])
    numbers = verdicts(given)["non_inferiority"].numbers
    assert numbers["interval low"] < -0.03 < numbers["interval high"]


def test_a_profile_of_ones_own_has_its_thresholds_and_stands_in_the_record() -> None:
    """34 cases, a lower mean, other criteria that block."""
    profile = GateProfile(
        name="pilot", case_count=None, minimum_cases=30, mean_score=0.7, blocking=["mean_score", "judges"]
    )
    given = sides([0.75] * 34, [0.9] * 34)
    found = verdicts(given, profile)
    assert (found["case_count"].required, found["case_count"].passed) == (">= 30", True)
    assert (found["mean_score"].required, found["mean_score"].passed) == (">= 0.70", True)
    assert (found["delta_vs_baseline"].passed, found["delta_vs_baseline"].severity) == (False, "WARN")
    kept = record(given, profile)
    assert (kept.passed, kept.context["profile"]["mean_score"]) == (True, 0.7)
    passed = "passes the score thresholds of the profile pilot but for delta_vs_baseline, which only warn there;"
    assert passed in kept.context["sentence"]
    assert profile.fingerprint() != LITERAL.fingerprint()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"mean_score": 0.7}, "name is 'literal', which is built in, but mean_score differs from it"),
        ({"name": "mine", "blocking": ["speed"]}, "blocking names 'speed'; known are case_count"),
        ({"name": "a <b>"}, "name is 'a <b>'; use at most 40 letters"),
    ],
)
def test_a_profile_that_does_not_hold_what_its_name_says_is_refused(wrong: dict[str, Any], said: str) -> None:
    """Whoever changes a built-in one names it; criteria that do not exist cannot block."""
    with pytest.raises(UserError, match=said):
        GateProfile(**wrong)
