"""Scored answers: every case counts, and what the metric does not see is said beside it."""

import re
from pathlib import Path

import pytest
from upath import UPath

from po_assets.dag import stage_frames
from po_assets.dataset.cases import read_eval_cases
from po_assets.errors import UserError
from po_assets.evaluation.answering import Answer
from po_assets.evaluation.scoring import about_others, answers_frame, read_scored, score_answers
from po_assets_tests.evaluation.scenes import GOOD, REVIEW, case, cases, scored


def test_a_good_answer_is_valid_right_and_without_findings() -> None:
    """The reference's own score; nothing cited or invented that is not there."""
    answer = scored(case())
    assert answer.total > 0.85
    assert answer.valid
    assert answer.status_is_right
    assert (answer.unknown_ids, answer.invented_conflicts) == ([], 0)


def test_a_case_without_answer_counts_with_what_nothing_is_worth() -> None:
    """One sixty-fourth: left out of the mean it would have flattered it."""
    (answer,) = score_answers([case()], [], model="student", model_digest="m", decoding="d")
    assert answer.total == 1 / 64
    assert answer.finish_reason == "missing"
    assert answer.problems[:2] == ["the VISION block is missing", "the REVIEW block is missing"]
    assert answer.invalid_reason == "the VISION and the REVIEW block are missing"


def test_an_answer_cut_in_the_review_keeps_only_its_vision() -> None:
    """A block that is never closed is missing, whatever it says."""
    answer = scored(case(), GOOD[: GOOD.index("narrative:")])
    assert 0.2 < answer.total < 0.45
    assert "the REVIEW block is not closed" in answer.problems
    assert answer.status is None


def test_a_review_that_is_no_yaml_says_so_first() -> None:
    """0.375 was once read as a wrong status."""
    answer = scored(case(), GOOD.replace("status: aligned", "status: aligned: yes"))
    assert answer.total == pytest.approx(0.375, abs=0.03)
    assert answer.problems[0].startswith("the REVIEW did not parse as YAML")
    assert (answer.valid, answer.status) == (False, None)
    assert answer.invalid_reason.startswith("the REVIEW does not parse as YAML: line 4, column 16")


def test_ids_that_the_case_does_not_have_are_named() -> None:
    """In the review only; case does not matter."""
    answer = scored(case(), GOOD.replace("FR002 lets skippers", "fr009 and NFR010 let skippers"))
    assert answer.unknown_ids == ["FR009", "NFR010"]


@pytest.mark.parametrize(
    ("conflicts", "reference", "invented"),
    [
        ("  conflicts:\n  - FR001 is against the concept\n  - FR002 too", REVIEW, 2),
        ("  conflicts:\n  - None identified; all fits", REVIEW, 0),
        ("  conflicts:\n  - No conflicts", REVIEW, 0),
        ("  conflicts:\n  - No direct conflicts were found\n  - 'No.'", REVIEW, 0),
        ("  conflicts:\n  - No fuel is sold, but FR001 asks for it", REVIEW, 1),
        ("  conflicts: none", REVIEW, 0),
        ("  conflicts:\n  - FR001 is wrong", REVIEW.replace("  conflicts: []", "  conflicts:\n  - FR002 is wrong"), 0),
        ("  conflicts:\n  - FR001 is wrong", "", 0),
    ],
    ids=[
        "two",
        "a placeholder",
        "another",
        "more placeholders",
        "a sentence that begins with no",
        "a text",
        "the reference has some",
        "no reference",
    ],
)
def test_conflicts_that_the_reference_does_not_have_are_counted(conflicts: str, reference: str, invented: int) -> None:
    """The metric pays for them. Whether those of the reference are the same ones is for people to judge."""
    of = case(reference_review_yaml=reference)
    assert scored(of, GOOD.replace("  conflicts: []", conflicts)).invented_conflicts == invented


def test_an_answer_to_another_case_is_known_by_its_words() -> None:
    """Whatever its score; an empty one, one about the own case and one about a sibling of it are not."""
    loan = "PennyShelf lends library books to pupils, who must reserve novels and renew loans."
    wanted = [case(1), case(2), case(3, concept=loan, requirements_yaml="title: PennyShelf\ndescription: Renew loans")]
    given = [loan, GOOD, loan]
    answers = [Answer(item.case_id, text, "stop", 1, 1.0) for item, text in zip(wanted, given, strict=True)]
    found = score_answers(wanted, answers, model="student", model_digest="m", decoding="d")
    assert [answer.about for answer in found] == ["EVAL-03", "", ""]
    assert not about_others(wanted, ["", "", ""])


@pytest.mark.parametrize("shift", [0, 1])
def test_no_reference_of_the_sample_cases_is_about_another_case_unless_it_is_given_to_one(shift: int) -> None:
    """The forty references in their places, and each in the place of the next.

    Nor are they about a case whose question is made of the words that all answers have.
    """
    wanted = read_eval_cases(UPath(Path(__file__).resolve().parents[2] / "artifacts/evaluation/po_eval_cases.jsonl"))
    texts = [f"{item.reference_vision_yaml}\n{item.reference_review_yaml}" for item in wanted]
    wordy = case(concept=" ".join(set.intersection(*(set(re.findall("[a-z]{3,}", text)) for text in texts))))
    found = about_others([*wanted, wordy], [*texts[shift:], *texts[:shift], ""])
    assert len(found) == 40 * shift
    assert 40 not in found.values()


def test_answers_keep_the_order_of_the_cases() -> None:
    """Whatever order they were generated in."""
    wanted = cases(4)
    given = [Answer(item.case_id, GOOD, "stop", 1, 1.0) for item in reversed(wanted)]
    found = score_answers(wanted, given, model="student", model_digest="m", decoding="d")
    assert [answer.case_id for answer in found] == [item.case_id for item in wanted]


def test_the_table_gives_back_what_was_put_in(tmp_path: Path) -> None:
    """The lines are the unit of truth, so nothing may be lost on the way."""
    before, path = [scored(item) for item in cases(3)], UPath(tmp_path / "answers.jsonl")
    stage_frames(path, [answers_frame(before)]).publish()
    assert read_scored(path) == before
    path.write_text('{"case_id": "EVAL-01"}\n')
    with pytest.raises(UserError, match=r"answers\.jsonl was written by another version .* materialize it again"):
        read_scored(path)
