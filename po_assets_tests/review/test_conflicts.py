"""Conflicts rows on demand: enough, sound, varied, honest about what could not be made."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from po_assets.dataset.cases import read_eval_cases
from po_assets.dataset.settings import SelectionSettings
from po_assets.errors import UserError
from po_assets.product_owner import (
    cited_ids,
    read_alignment,
    read_status,
    read_yaml,
    requirement_entries,
    score_product_owner,
    validate_answer,
)
from po_assets.review.conflicts import LANDED_NAME, Synthesis
from po_assets.review.english import AUTHORED
from po_assets.review.settings import ReviewSettings
from po_assets.storage import Layout, read_rows
from po_assets_tests.review.scenes import close, land, synthesis, take_in, teacher_rows


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return take_in(land(tmp_path_factory.mktemp("root"), teacher=teacher_rows(300)))


@pytest.fixture(scope="module")
def made(layout: Layout) -> Synthesis:
    return synthesis(layout, target_conflicts_share=0.08)


def of_pattern(layout: Layout, made: Synthesis, pattern: str) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """The made rows of a pattern, each with its parents."""
    rows = {row["record_id"]: row for row in read_rows(layout.normalized)}
    chosen = [row for row in made.rows if row["metadata"]["pattern"] == pattern]
    assert chosen
    return [(row, [rows[identifier] for identifier in row["metadata"]["parents"]]) for row in chosen]


def test_the_target_is_reached_with_as_few_rows_as_can_be(made: Synthesis) -> None:
    """One row fewer would miss it; both patterns are used alike."""
    needed, basis = made.record["needed"], made.basis
    assert basis.conflicts == 0
    assert basis.share_with(needed) >= 0.08 > basis.share_with(needed - 1)
    assert len(made.rows) == needed
    patterns = Counter(row["metadata"]["pattern"] for row in made.rows)
    assert set(patterns) == {"scope_mismatch", "violated_non_goal"}
    assert max(patterns.values()) - min(patterns.values()) <= 2
    assert made.verdicts["share_reached"].passed


def test_every_row_is_valid_and_its_review_names_what_offends_what_is_missing_and_what_to_do(made: Synthesis) -> None:
    """By the validator and the metric themselves; every id of the document stands in the review, and no other."""
    for row in made.rows:
        vision, review = row["teacher_product_vision"], row["teacher_product_owner_review"]
        assert validate_answer(vision, review), review
        assert row["score"] == score_product_owner(row["requirements_yaml"], vision, review).total >= 0.82
        assert read_status(review) == "conflicts"
        assert (row["metadata"]["source"], row["metadata"]["made_by"]) == ("synthetic", "synthetic_conflicts")
        said = read_alignment(review)
        ids = [entry.id for entry in requirement_entries(row["requirements_yaml"])]
        assert sorted(cited_ids(" ".join(map(str, (*said["aligned"], *said["conflicts"]))))) == sorted(ids)
        assert said["gaps"]
        assert len(read_yaml(review).value["recommended_actions"]) >= 2
        offending = cited_ids(" ".join(said["conflicts"]))
        assert offending == ids if row["metadata"]["pattern"] == "scope_mismatch" else len(offending) == 1


def test_a_mismatch_recombines_two_documents_as_they_stand(layout: Layout, made: Synthesis) -> None:
    """Concept and vision of the first parent, requirements of the second; each pair is used both ways."""
    pairs = Counter()
    for row, (one, other) in of_pattern(layout, made, "scope_mismatch"):
        assert (row["concept"], row["teacher_product_vision"]) == (one["concept"], one["vision_yaml"])
        assert row["requirements_yaml"] == other["requirements_yaml"]
        pairs[frozenset(row["metadata"]["parents"])] += 1
    assert set(pairs.values()) == {2}


def test_a_violation_changes_one_description_into_what_the_vision_excludes(layout: Layout, made: Synthesis) -> None:
    """All else in the document stays to the character, and so does its length to three characters."""
    for row, (parent,) in of_pattern(layout, made, "violated_non_goal"):
        old, new = (document.split("\n") for document in (parent["requirements_yaml"], row["requirements_yaml"]))
        ((before, after),) = [(one, other) for one, other in zip(old, new, strict=True) if one != other]
        assert abs(len(before) - len(after)) <= 3
        (non_goal,) = read_yaml(parent["vision_yaml"]).value["non_goals"]
        excluded = non_goal.split(" does not ")[-1].lower()
        assert (excluded in after, excluded in before) == (True, False)


def test_no_sentence_of_the_reviews_gives_the_status_away(made: Synthesis) -> None:
    """Every form takes words from the row's own documents, and no sentence stands in more than a tenth of the reviews."""
    for pattern in ("violated_non_goal", "scope_mismatch", "both"):
        assert all(re.search(r"\{(product|vp)\}", form) for pool in AUTHORED[pattern].values() for form in pool)
    sentences: Counter[str] = Counter()
    for row in made.rows:
        review = read_yaml(row["teacher_product_owner_review"]).value
        conflicts = review["requirements_alignment"]["conflicts"]
        items = [*review["summary"], *review["recommended_actions"], *conflicts, review["narrative"]]
        sentences.update({part for item in items for part in item.split(". ")})
    assert max(sentences.values()) <= len(made.rows) / 10


def test_the_same_rows_in_another_order_give_the_same_conflicts(tmp_path: Path, made: Synthesis) -> None:
    """In several files, backwards; another seed gives others."""
    rows = teacher_rows(300)[::-1]
    layout = take_in(land(tmp_path, b=rows[:100], a=rows[100:]))
    assert synthesis(layout, target_conflicts_share=0.08).rows == made.rows
    other = synthesis(layout, target_conflicts_share=0.08, seed=43).rows
    assert not [row for row in other if row in made.rows]


def test_made_rows_are_no_parents_and_do_not_count(tmp_path: Path) -> None:
    """After the graph took them in, the same rows are made again, and nothing lands twice."""
    layout = take_in(land(tmp_path, teacher=teacher_rows(120)))
    first, landed = synthesis(layout), layout.incoming / LANDED_NAME
    count = len(first.rows)
    assert first.landed == f"{count} rows landed in synthetic_conflicts.jsonl; the sensor takes them from there."
    written = landed.stat().st_mtime_ns
    ledger = close(take_in(layout))
    assert Counter(entry["outcome"] for entry in ledger if entry["file"] == LANDED_NAME) == {"kept": count}
    again = synthesis(layout)
    assert again.rows == first.rows
    assert again.landed == f"synthetic_conflicts.jsonl holds these {count} rows already; nothing was written."
    assert landed.stat().st_mtime_ns == written


def test_nothing_is_made_when_the_target_is_met(tmp_path: Path) -> None:
    """A file of earlier times is named and left alone."""
    layout = take_in(land(tmp_path, teacher=teacher_rows(60)))
    made = synthesis(layout, target_conflicts_share=0.1)
    take_in(land(tmp_path, conflicts=[row | {"metadata": {}} for row in made.rows]))  # now a teacher's own
    found = synthesis(layout, target_conflicts_share=0.05)
    assert (found.record["needed"], found.rows) == (0, [])
    assert "met by the teacher's rows alone" in found.landed
    assert "is met, nothing was made" in found.verdicts["share_reached"].summary
    assert (layout.incoming / LANDED_NAME).exists()


def test_what_could_not_be_made_is_counted_with_its_reasons(tmp_path: Path) -> None:
    """One product, whose visions name no non-goal: neither pattern has anything to work with."""
    one = next(row for row in teacher_rows(20) if "teacher_product_vision" in row)
    vision = one["teacher_product_vision"].replace("non_goals:\n-", "non_goals: []\nx:\n-")
    rows = [
        one | {"teacher_product_vision": vision, "concept": f"{one['concept']} Version {number}."}
        for number in range(40)
    ]
    found = synthesis(take_in(land(tmp_path, teacher=rows)))
    assert (found.record["needed"], found.rows) == (4, [])
    verdict = found.verdicts["share_reached"]
    assert not verdict.passed
    assert "4 rows could not be made" in verdict.summary
    assert {row["reason"]: row["parents"] for row in verdict.rows} == {
        "no requirements of the same shape are about something else": 40,
        "no requirement can be changed into a violation of a non-goal and keep its form and length": 40,
    }
    assert found.landed == "Nothing was landed: no row could be made."


def test_products_of_evaluation_cases_are_no_parents(tmp_path: Path) -> None:
    """Even where another concept and other requirements keep the row from being held out."""
    layout = land(tmp_path, teacher=[])
    rows, case = teacher_rows(40), read_eval_cases(layout.eval_cases)[0]
    visions = (case.reference_vision_yaml, rows[0]["teacher_product_vision"])
    name, product = (read_yaml(vision).value["product_name"] for vision in visions)
    take_in(land(tmp_path, teacher=[json.loads(json.dumps(rows[0]).replace(product, name)), *rows[1:]]))
    parents = synthesis(layout).basis.parents
    assert parents
    assert not [parent for parent in parents if name in parent.row["vision_yaml"]]


def test_the_share_is_of_what_would_be_trained_on(tmp_path: Path) -> None:
    """With max_samples, conflicts rows take the place of others, so that fewer are needed."""
    layout = take_in(land(tmp_path, teacher=teacher_rows(120)))
    found = synthesis(layout, SelectionSettings(max_samples=50), target_conflicts_share=0.1)
    assert (found.basis.kept, found.record["needed"]) == (50, 5)
    close(take_in(layout), SelectionSettings(max_samples=50))
    supervised = list(read_rows(layout.supervised))
    assert (len(supervised), sum("status: conflicts" in row["response"] for row in supervised)) == (50, 5)


@pytest.mark.parametrize("share", [0.0249, 0.1001])
def test_a_target_out_of_range_is_refused(share: float) -> None:
    """2.5 to 10 percent."""
    with pytest.raises(UserError, match="target_conflicts_share"):
        ReviewSettings(target_conflicts_share=share)
