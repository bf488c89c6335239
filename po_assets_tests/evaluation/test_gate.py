"""The gate: each threshold exactly where it is written, and messages that say cases, numbers and next step."""

from dataclasses import replace

import pytest

from po_assets.dag import GateRecord, Verdict, check_description
from po_assets.errors import UserError
from po_assets.evaluation.checks import Evidence, checks
from po_assets.evaluation.gate import judge
from po_assets.evaluation.scoring import ScoredAnswer
from po_assets.evaluation.settings import CRITERIA, GateProfile
from po_assets_tests.evaluation.scenes import both_sides, case, scored

GOOD_TOTALS = [0.88 + 0.002 * (number % 10) for number in range(40)]


def rows(
    baseline: list[ScoredAnswer], student: list[ScoredAnswer], profile: GateProfile | None = None
) -> dict[str, Verdict]:
    return checks.verdicts(Evidence(baseline, student, profile or GateProfile()))


def record(baseline: list[ScoredAnswer], student: list[ScoredAnswer], profile: GateProfile | None = None) -> GateRecord:
    found = Evidence(baseline, student, profile or GateProfile())
    return judge(found, "a" * 64, cases_sha256="c" * 64, decoding="greedy")


def passes(baseline: list[ScoredAnswer], student: list[ScoredAnswer]) -> bool:
    return record(baseline, student).passed


def always_aligned() -> tuple[list[ScoredAnswer], list[ScoredAnswer]]:
    """Good scores, and one status for all."""
    baseline, student = both_sides(GOOD_TOTALS)
    return baseline, [replace(answer, status="aligned") for answer in student]


def test_a_good_student_passes_every_criterion() -> None:
    """In the order of the design."""
    found = rows(*both_sides(GOOD_TOTALS))
    assert [name for name, verdict in found.items() if not verdict.passed] == []
    warnings = {"judges", "non_inferiority", "status_accuracy", "worst_case", "consumer_prompts"}
    assert {name for name, verdict in found.items() if verdict.severity == "WARN"} == warnings
    assert passes(*both_sides(GOOD_TOTALS))
    assert list(found) == [
        "case_count",
        "mean_score",
        "score_std",
        "delta_vs_baseline",
        "valid_answers",
        "judges",
        "non_inferiority",
        "status_accuracy",
        "worst_case",
        "consumer_prompts",
    ]


def test_39_cases_are_too_few() -> None:
    """The gate of the manual process ran on 34."""
    row = rows(*both_sides(GOOD_TOTALS[:39]))["case_count"]
    assert not row.passed
    assert row.severity == "ERROR"
    assert check_description(row).startswith("39 cases were evaluated, 40 are wanted.")
    assert "materialize eval_cases" in check_description(row)


@pytest.mark.parametrize(("total", "passed"), [(0.82, True), (0.8199, False)])
def test_the_mean_must_reach_082(total: float, passed: bool) -> None:
    """The limit itself is enough."""
    row = rows(*both_sides([total] * 40))["mean_score"]
    assert row.passed is passed
    assert row.required == ">= 0.82"


def test_a_low_mean_names_the_lowest_cases_and_why() -> None:
    """With what cost them points."""
    baseline, student = both_sides([0.5] * 40)
    student[7] = scored(case(8), "no answer at all")
    row = rows(baseline, student)["mean_score"]
    assert "at least 0.82 is asked for" in check_description(row)
    assert "open them in the HTML report" in check_description(row)
    assert row.rows[0]["case"] == "EVAL-08"
    assert "the VISION block is missing" in row.rows[0]["what cost points"]


def test_scores_that_spread_too_far_fail() -> None:
    """Sample standard deviation over 0.10; the farthest cases are named."""
    totals = [0.95] * 36 + [0.4] * 4
    row = rows(*both_sides(totals))["score_std"]
    assert not row.passed
    assert "at most 0.10 is allowed" in check_description(row)
    assert {item["case"] for item in row.rows[:4]} == {"EVAL-37", "EVAL-38", "EVAL-39", "EVAL-40"}


@pytest.mark.parametrize(("delta", "passed"), [(0.1, True), (-0.029, True), (-0.031, False)])
def test_the_student_may_be_better_but_not_much_worse(delta: float, passed: bool) -> None:
    """One-sided: no upper limit."""
    row = rows(*both_sides([0.85] * 40, baseline=[0.85 - delta] * 40))["delta_vs_baseline"]
    assert row.passed is passed
    assert row.value == f"{delta:+.3f}"


def test_a_worse_student_is_shown_what_it_lost_where() -> None:
    """The case that lost most comes first, with both scores."""
    before = [0.95] * 40
    after = [0.95] * 20 + [0.85] * 19 + [0.6]
    row = rows(*both_sides(after, baseline=before))["delta_vs_baseline"]
    assert not row.passed
    assert row.rows[0] | {"what cost points": ""} == {
        "case": "EVAL-40",
        "baseline": 0.95,
        "student": 0.6,
        "difference": -0.35,
        "what cost points": "",
    }
    assert "Training made the model worse than its base" in check_description(row)


@pytest.mark.parametrize(("invalid", "passed"), [(4, True), (5, False)])
def test_nine_of_ten_answers_must_be_valid(invalid: int, passed: bool) -> None:
    """36 of 40 are enough."""
    baseline, student = both_sides(GOOD_TOTALS)
    student[:invalid] = [
        replace(answer, valid=False, invalid_reason="the VISION has no product_name") for answer in student[:invalid]
    ]
    row = rows(baseline, student)["valid_answers"]
    assert row.passed is passed
    if not passed:
        assert [item["case"] for item in row.rows] == [f"EVAL-{number:02d}" for number in range(1, invalid + 1)]
        assert row.rows[0]["reason"] == "the VISION has no product_name"
        assert check_description(row).startswith("35 of 40 answers are valid (87.5%); at least 90% is asked for.")


def test_a_difference_that_could_be_chance_is_a_warning_with_the_interval() -> None:
    """Mean difference of zero, but so much scatter that -0.03 lies inside the interval."""
    scatter = [0.2, -0.2] * 20
    row = rows(*both_sides([0.85 + s / 4 for s in scatter], baseline=[0.85 - s / 4 for s in scatter]))[
        "non_inferiority"
    ]
    assert not row.passed
    assert row.severity == "WARN"
    assert "This many cases resolve a difference of 0.045." in check_description(row)
    assert row.numbers["interval low"] < -0.03 < row.numbers["interval high"]
    assert row.severity == "WARN"


def test_always_saying_aligned_is_a_warning() -> None:
    """Which the metric rewards."""
    row = rows(*always_aligned())["status_accuracy"]
    assert not row.passed
    assert row.severity == "WARN"
    assert "32 of 40 answers give the right status" in check_description(row)
    assert "0 of 8 needs_adjustment" in check_description(row)
    assert {item["right status"] for item in row.rows} == {"needs_adjustment"}


def test_a_single_bad_case_is_a_warning() -> None:
    """Though mean and spread are fine."""
    row = rows(*both_sides([*GOOD_TOTALS[:39], 0.65]))["worst_case"]
    assert not row.passed
    assert row.severity == "WARN"
    assert check_description(row).startswith("1 of 40 cases scores under 0.70; the lowest is EVAL-40 with 0.650.")


def test_sides_that_answered_other_cases_or_in_another_way_are_refused() -> None:
    """Every mismatch at once, with the way out."""
    baseline, student = both_sides(GOOD_TOTALS)
    student[0] = scored(case(99))
    student = [replace(answer, decoding="other") for answer in student]
    with pytest.raises(ValueError, match="cannot be compared") as error:
        Evidence(baseline, student)
    assert "2 cases were answered by one side only (EVAL-01, EVAL-99)" in str(error.value)
    assert "decoding settings differ (dddddddddddd and other)" in str(error.value)
    assert "Materialize baseline_report and eval_report together" in str(error.value)


def test_a_gate_fails_with_any_error_and_never_with_a_warning() -> None:
    """Whatever the order."""
    assert passes(*both_sides([*GOOD_TOTALS[:39], 0.65]))
    assert not passes(*both_sides([0.81] * 40))


def test_a_student_that_always_says_the_same_does_not_judge() -> None:
    """Said in the verdict's first sentence; a warning in the literal gate, in the profile reviewer a failure."""
    row = rows(*always_aligned())["judges"]
    assert (row.passed, row.severity, row.required) == (False, "WARN", "p < 0.05")
    assert row.summary.startswith("The student does not judge: says aligned to every document. Right are 32 of 40 (65%")
    assert "32 of 32 aligned (89% to 100%), 0 of 8 needs_adjustment (0% to 32%)" in row.summary
    literal = record(*always_aligned())
    assert literal.passed
    assert literal.context["sentence"] == (
        "The student passes the score thresholds; does not judge: says aligned to every document."
    )
    reviewer = record(*always_aligned(), GateProfile(name="reviewer"))
    assert not reviewer.passed
    assert list(reviewer.failed) == ["judges"]
    assert reviewer.context["profile"]["name"] == "reviewer"


@pytest.mark.parametrize(("wrong", "judges"), [(0, True), (2, True), (4, False)])
def test_judging_is_more_than_luck(wrong: int, judges: bool) -> None:
    """32 of 40 are right by always saying aligned: 38 are better at the 5 % level, 36 are not."""
    baseline, student = both_sides(GOOD_TOTALS)
    student[:wrong] = [replace(answer, status="conflicts") for answer in student[:wrong]]
    found = rows(baseline, student)["judges"]
    assert found.passed is judges
    said = f"{'judges' if judges else 'does not judge'}: {40 - wrong} of 40 statuses are right, always saying aligned gets 32"
    assert said in found.summary
    assert said in record(baseline, student).context["sentence"]


def test_cases_without_a_right_status_are_counted_and_left_out() -> None:
    """Where none has one, nothing is known of the judgement."""
    baseline, student = both_sides(GOOD_TOTALS)
    some = [replace(answer, reference_status="") for answer in student[:10]] + student[10:]
    found = rows(baseline, some)
    assert "10 cases without a right status are left out" in found["judges"].summary
    assert "30 of 30 answers give the right status" in found["status_accuracy"].summary
    none = [replace(answer, reference_status="") for answer in student]
    assert not rows(baseline, none)["judges"].passed
    assert "whether it judges is not known: no case has a right status" in record(baseline, none).context["sentence"]
    assert record(baseline, none).passed


def test_a_profile_of_ones_own_has_its_thresholds_and_stands_in_the_record() -> None:
    """34 cases, a lower mean, other criteria that block."""
    profile = GateProfile(
        name="pilot", case_count=None, minimum_cases=30, mean_score=0.7, blocking=["mean_score", "judges"]
    )
    sides = both_sides([0.75] * 34, baseline=[0.9] * 34)
    found = rows(*sides, profile)
    assert (found["case_count"].required, found["case_count"].passed) == (">= 30", True)
    assert (found["mean_score"].required, found["mean_score"].passed) == (">= 0.70", True)
    assert (found["delta_vs_baseline"].passed, found["delta_vs_baseline"].severity) == (False, "WARN")
    kept = record(*sides, profile)
    assert kept.passed
    assert kept.context["profile"]["mean_score"] == 0.7
    passed = "passes the score thresholds of the profile pilot but for delta_vs_baseline, which only warn there;"
    assert passed in kept.context["sentence"]
    assert profile.fingerprint() != GateProfile().fingerprint()


def test_a_built_in_profile_holds_what_its_name_says() -> None:
    """Whoever changes it names it; criteria that do not exist cannot block."""
    with pytest.raises(UserError, match="name is 'literal', which is built in, but mean_score differs from it"):
        GateProfile(mean_score=0.7)
    with pytest.raises(UserError, match="blocking names 'speed'; known are case_count"):
        GateProfile(name="mine", blocking=["speed"])
    with pytest.raises(UserError, match="name is 'a <b>'; use at most 40 letters"):
        GateProfile(name="a <b>")
    assert checks.names == CRITERIA
