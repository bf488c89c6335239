"""The metric, to the digit: landmarks of published results, each rule once, and any text at all."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from po_assets.product_owner import score_product_owner
from po_assets_tests.product_owner.documents_text import REQUIREMENTS, REVIEW, VISION

UNPARSABLE_REVIEW = "status: aligned\nsummary:\n- a: b: c"
SHORT_SUMMARY = "product_summary: A planner for dispatchers of delivery companies, which assigns routes to drivers.\n"


def test_a_perfect_answer_scores_one_and_nothing_at_all_one_sixty_fourth() -> None:
    """Nothing lost, nothing named; a missing alignment counts as an empty mapping, one of sixteen schema tests."""
    score = score_product_owner(REQUIREMENTS, VISION, REVIEW)
    assert (score.total, score.schema, score.vision, score.alignment, score.specificity) == (1.0, 30, 30, 30, 30)
    assert score.problems == []
    assert score_product_owner("", "", "").total == 1 / 64


BARE_DATE = VISION.replace("'2026-05-14'", "2026-05-14")


@pytest.mark.parametrize(
    ("vision", "total"),
    [
        (re.sub(r"product_summary.*?(?=target_users)", SHORT_SUMMARY, BARE_DATE, flags=re.DOTALL), 0.35),
        (BARE_DATE, 0.375),
        (VISION, 0.390625),
    ],
)
def test_a_review_that_does_not_parse_leaves_the_visions_points(vision: str, total: float) -> None:
    """The landmarks 0.35 and 0.375 (the date unquoted), once read as a wrong status."""
    score = score_product_owner(REQUIREMENTS, vision, UNPARSABLE_REVIEW)
    assert score.total == pytest.approx(total, abs=1e-12)
    assert score.problems[0].startswith("the REVIEW did not parse as YAML: line 3, column 7: mapping values")


def test_the_status_conflicts_is_not_in_the_metrics_set() -> None:
    """Kept because published scores were computed so; it costs one of sixteen schema tests."""
    score = score_product_owner(REQUIREMENTS, VISION, REVIEW.replace("needs_adjustment", "conflicts"))
    assert score.schema == 30 * 15 / 16
    assert score.problems == ["the review's status is none of aligned, needs_adjustment, misaligned (-1.9 points)"]


@pytest.mark.parametrize(("covered", "points"), [(1, 8 * 0.25), (2, 8.0), (3, 16 + 0.05 / 0.15 * 6), (4, 22.0)])
def test_coverage_is_rewarded_in_steps(covered: int, points: float) -> None:
    """Of four requirements, as many as are cited by id count; nothing else is in the review."""
    ids = ["FR001", "FR002", "NFR001", "C001"][:covered]
    review = f"narrative: {' '.join(ids)}"
    assert score_product_owner(REQUIREMENTS, "", review).alignment == pytest.approx(points)


def test_a_requirement_is_covered_by_thirty_percent_of_its_words() -> None:
    """Three of the ten words of a description are enough, two are not, and stop words do not count."""
    requirements = "constraints:\n- description: one two three four five six seven eight nine ten and the users"
    assert score_product_owner(requirements, "", "summary: one two three").alignment == 22
    assert score_product_owner(requirements, "", "summary: one two and the users").alignment == 0


def test_problems_come_most_costly_first_and_sum_to_what_is_missing() -> None:
    """What the parts lack of 120 points is what the problems say."""
    review = REVIEW.replace("- Keep FR001 and FR002 as they are.\n", "").replace("- Drivers\n", "")
    vision = VISION.replace("- Drivers\n", "").replace("- Warehouse management", "  text")
    score = score_product_owner(REQUIREMENTS, vision, review)
    lost = [float(problem.split("(-")[1].split(" ")[0]) for problem in score.problems]
    assert lost == sorted(lost, reverse=True)
    assert sum(lost) == pytest.approx((1 - score.total) * 120, abs=0.06 * len(lost))


@pytest.mark.parametrize(
    "text", ["- a\n- b", "7", "2024-01-01", "null", "[[[", "]]]\nstatus: aligned", "\x00", "\ud800", "[" * 100_000]
)
def test_documents_of_another_kind_count_as_empty(text: str) -> None:
    """A list, a number, a date, nothing, more brackets than a parser's stack holds: never an exception."""
    assert 0 <= score_product_owner(text, text, text).total <= 1 / 16


_YAML_LIKE = st.lists(
    st.sampled_from(
        [
            *("status: ", "aligned", "conflicts", "\n", "- ", "  ", "requirements_alignment:", "gaps: []"),
            *("summary:\n- x\n", "narrative: ", "FR001 ", "&a ", "*a ", "!!python/none ", "'", '"', "{", "}"),
            *("0x" + "f" * 5000, "1:" * 50),
        ]
    ),
    max_size=30,
).map("".join)


@settings(max_examples=300, deadline=None)
@given(*[st.one_of(st.text(), _YAML_LIKE, st.just(VISION), st.just(REVIEW))] * 3)
def test_any_text_gives_a_score_within_its_bounds(requirements: str, vision: str, review: str) -> None:
    """Total in [0, 1], each part in [0, 30], the total is their sum."""
    score = score_product_owner(requirements, vision, review)
    parts = (score.schema, score.vision, score.alignment, score.specificity)
    assert all(0 <= part <= 30 for part in parts)
    assert score.total == pytest.approx(sum(parts) / 120)


def test_a_document_that_does_not_parse_is_one_problem_with_all_it_cost() -> None:
    """The costliest document comes first, each with PyYAML's line and reason, and nothing is said twice."""
    said = "did not parse as YAML: line {}: mapping values are not allowed in this context; the line is {!r}"
    score = score_product_owner(REQUIREMENTS, "product_name: a: b", UNPARSABLE_REVIEW)
    assert score.problems == [
        f"the REVIEW {said.format('3, column 7', '- a: b: c')} (-73.1 points)",
        f"the VISION {said.format('1, column 16', 'product_name: a: b')} (-45.0 points)",
    ]
    problems = score_product_owner("- a: b: c", VISION, REVIEW).problems
    assert problems == [f"the requirements {said.format('1, column 7', '- a: b: c')} (-30.0 points)"]


def test_many_requirements_and_many_remarks_are_compared_in_bounded_time() -> None:
    """Two documents as long as are read, of which no entry is covered."""
    requirements = "constraints:\n" + "".join(f"- description: a{n} b{n} c{n} d{n}\n" for n in range(1_200))
    review = "summary:\n" + "".join(f"- a{n} x\n" for n in range(5_000))
    start = time.process_time()
    assert score_product_owner(requirements, "", review).alignment == 0
    assert time.process_time() - start < 5
