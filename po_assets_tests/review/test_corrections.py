"""Candidates for people: what is laid before a person, and what becomes of the corrections."""

import functools
import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from po_assets.dag import stage_frames
from po_assets.dataset.cases import EvalCase, read_eval_cases
from po_assets.errors import UserError
from po_assets.evaluation.answering import Answer
from po_assets.evaluation.scoring import score_answer
from po_assets.product_owner import STATUSES, format_answer, read_status, score_product_owner
from po_assets.review import review_file
from po_assets.review.candidates import Collected, collect
from po_assets.review.review_file import Entry, land_corrections, read_review_file, write_review_file
from po_assets.review.settings import ReviewSettings
from po_assets.storage import Layout, file_digest, read_rows
from po_assets_tests.review.scenes import close, land, take_in, teacher_rows

BETTER = "Every entry was compared with the concept once more, and all of them serve the product as it was planned."


@functools.cache
def scored(case: EvalCase, text: str, model: str) -> dict[str, Any]:
    answer = Answer(case.case_id, text, "stop", tokens=300, seconds=1.0)
    return asdict(score_answer(case, answer, model=model, model_digest="m", decoding="d"))


def disagreeing(layout: Layout) -> str:
    """All cases answered with their references, but the first aligned one with needs_adjustment by the student."""
    cases = read_eval_cases(layout.eval_cases)
    one = next(case for case in cases if case.status == "aligned")
    other = one.reference_review_yaml.replace("status: aligned", "status: needs_adjustment")
    for name, path in (("baseline", layout.baseline_answers), ("student", layout.student_answers)):
        rows = []
        for case in cases:
            review = other if case is one and name == "student" else case.reference_review_yaml
            rows.append(scored(case, format_answer(case.reference_vision_yaml, review), name))
        table = stage_frames(path, [pd.DataFrame(rows)])
        table.with_manifest(inputs={"eval_cases": file_digest(layout.eval_cases)}).publish()
    return one.case_id


@pytest.fixture(scope="module")
def landed(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Thirty rows, of which two declare another score than the metric gives; to be copied."""
    rows = teacher_rows(30)
    declared = [row | {"score": 0.99} if number in {3, 5} else row for number, row in enumerate(rows)]
    return take_in(land(tmp_path_factory.mktemp("landed"), teacher=declared))


@pytest.fixture
def layout(landed: Layout, tmp_path: Path) -> Layout:
    shutil.copytree(str(landed.root), tmp_path, dirs_exist_ok=True)
    return Layout(UPath(tmp_path))


def collected(layout: Layout, **settings: Any) -> Collected:
    found = collect(layout, ReviewSettings(**settings), 0.005)
    write_review_file(layout, found.candidates)
    return found


def edit(layout: Layout, identifier: str, **parts: Any) -> None:
    """What a person does in an editor."""
    entries = yaml.safe_load(layout.review_file.read_text())
    for entry in entries:
        if entry["id"] == identifier:
            entry.update(parts)
    layout.review_file.write_text(yaml.safe_dump(entries, sort_keys=False))


def better(layout: Layout, one: Entry) -> str:
    """A corrected review in the file."""
    review = one.review.split("narrative:")[0] + f"narrative: {BETTER}\n"
    edit(layout, one.identifier, review=review)
    return review.strip()


def refused(layout: Layout) -> str:
    """Why nothing was taken."""
    with pytest.raises(UserError) as error:
        land_corrections(layout)
    assert not list(layout.incoming.glob("corrections-*"))
    return str(error.value)


def case_of(layout: Layout, case_id: str) -> EvalCase:
    return next(case for case in read_eval_cases(layout.eval_cases) if case.case_id == case_id)


def test_rows_with_other_scores_and_cases_that_models_dispute_are_candidates(layout: Layout) -> None:
    """With the reason; the worst first, and rows apart from cases."""
    case_id = disagreeing(layout)
    found = collected(layout, worst_cases=2)
    rows = [one for one in found.candidates if one.kind == "teacher_row"]
    cases = [one for one in found.candidates if one.kind == "evaluation_case"]
    assert {one.place for one in rows} == {"teacher.jsonl:4", "teacher.jsonl:6"}
    assert rows[0].why[0].startswith("it declares a score of 0.990, the metric gives 0.")
    assert rows[0].weight >= rows[1].weight
    assert cases[0].identifier == case_id
    assert cases[0].why[0] == "the student says needs_adjustment, the base model aligned, the case aligned"
    assert len(cases) == 3
    assert all("lowest" in one.why[-1] for one in cases[1:])


def test_without_answers_or_with_answers_to_other_cases_only_rows_are_candidates(layout: Layout) -> None:
    """And it is said why."""
    assert collected(layout).notes == [
        "Evaluation cases were left out: materialize baseline_report and eval_report first."
    ]
    disagreeing(layout)
    layout.eval_cases.write_text(layout.eval_cases.read_text() + "\n")
    found = collected(layout)
    assert {one.kind for one in found.candidates} == {"teacher_row"}
    assert found.notes == ["Evaluation cases were left out: they have changed since the models answered them."]


def test_the_review_file_shows_documents_as_they_are(layout: Layout) -> None:
    """Block scalars without escapes, and the way to land them in the first lines; it reads back to the same."""
    candidates = collected(layout).candidates
    text = layout.review_file.read_text()
    assert layout.command("review land") in text.split("- candidate")[0]
    assert "  review: |\n    status: " in text
    assert "\\n" not in text
    for one, entry in zip(candidates, read_review_file(layout.review_file), strict=True):
        assert (entry.vision.strip(), entry.review.strip()) == (one.vision, one.review)


def test_a_corrected_row_lands_once_and_replaces_the_old_one(layout: Layout) -> None:
    """By the command; the score is the metric's, the graph takes the rest from there, and the edited file is kept."""
    one, other = collected(layout).candidates
    review = better(layout, one)
    told: list[str] = []
    assert review_file.land(layout, told.append) == 0
    assert told[0].startswith("1 corrected row landed in incoming/corrections-")
    assert told[1] == "1 answer was left as it is."
    (landed,) = layout.incoming.glob("corrections-*.jsonl")
    row = json.loads(landed.read_text())
    assert row["metadata"] == row["metadata"] | {"replaces": one.identifier, "corrected_from": one.place}
    assert row["score"] == score_product_owner(one.requirements, one.vision, review).total
    ledger = {f"{entry['file']}:{entry['line']}": entry for entry in close(take_in(layout))}
    assert (ledger[one.place]["outcome"], ledger[one.place]["detail"]) == ("replaced", f"replaced by {landed.name}:1")
    assert ledger[f"{landed.name}:1"]["outcome"] == "kept"
    assert BETTER in layout.supervised.read_text()

    (kept,) = layout.review_file.parent.glob("po_review_candidates.landed-*.yaml")
    assert BETTER in str(yaml.safe_load(kept.read_text()))
    with pytest.raises(UserError, match="There is no review file"):
        land_corrections(layout)
    assert [left.identifier for left in collected(layout).candidates] == [other.identifier]


def test_a_corrected_case_changes_the_evaluation_and_nothing_else(layout: Layout) -> None:
    """Its own line in the file of cases; nothing lands, and its input stays held out even if someone lands it."""
    case_id = disagreeing(layout)
    before = layout.eval_cases.read_bytes().splitlines()
    landed_before = sorted(path.name for path in layout.incoming.iterdir())
    case = case_of(layout, case_id)
    collected(layout)
    review = case.reference_review_yaml.replace("status: aligned", "status: needs_adjustment")
    edit(layout, case_id, review=review, status="needs_adjustment")
    landed = land_corrections(layout)
    assert (landed.cases, landed.rows) == ([case_id], [])
    assert sorted(path.name for path in layout.incoming.iterdir()) == landed_before
    after = layout.eval_cases.read_bytes().splitlines()
    assert sum(one != other for one, other in zip(before, after, strict=True)) == 1
    assert case_of(layout, case_id) == replace(case, reference_review_yaml=review, status="needs_adjustment")

    by_hand = {
        "concept": case.concept,
        "requirements_yaml": case.requirements_yaml,
        "teacher_product_vision": case.reference_vision_yaml,
        "teacher_product_owner_review": review,
        "score": 0.95,
    }
    ledger = close(take_in(land(Path(str(layout.root)), byhand=[by_hand])))
    assert [entry["outcome"] for entry in ledger if entry["file"] == "byhand.jsonl"] == ["held_out"]


def test_a_case_that_stands_as_a_row_is_corrected_in_the_form_of_cases(layout: Layout) -> None:
    """Its line alone; the others stay to the byte."""
    lines = layout.eval_cases.read_text().splitlines()
    number = next(number for number, line in enumerate(lines) if json.loads(line)["status"] == "aligned")
    case = json.loads(lines[number])
    answer = {"teacher_product_vision": case["reference_vision_yaml"]}
    answer["teacher_product_owner_review"] = case["reference_review_yaml"]
    asked = {name: case[name] for name in ("concept", "requirements_yaml", "tier")}
    lines[number] = json.dumps({"concept_id": case["case_id"], **asked, **answer})
    layout.eval_cases.write_text("".join(f"{line}\n" for line in lines))
    assert disagreeing(layout) == case["case_id"]
    collected(layout)
    review = case["reference_review_yaml"].replace("status: aligned", "status: needs_adjustment")
    edit(layout, case["case_id"], review=review, status="needs_adjustment")
    assert land_corrections(layout).cases == [case["case_id"]]
    after = layout.eval_cases.read_text().splitlines()
    assert json.loads(after[number]) == {**case, "reference_review_yaml": review, "status": "needs_adjustment"}
    assert [*after[:number], *after[number + 1 :]] == [*lines[:number], *lines[number + 1 :]]


def test_a_linked_file_of_cases_is_corrected_where_it_lies(layout: Layout) -> None:
    """As a project's own is; with a mark of its encoding before it, and a blank line behind."""
    own = Path(str(layout.root)) / "ours.jsonl"
    own.write_text(f"\ufeff{layout.eval_cases.read_text()}\n", encoding="utf-8")
    layout.eval_cases.unlink()
    layout.eval_cases.symlink_to(own)
    case_id = disagreeing(layout)
    collected(layout)
    review = case_of(layout, case_id).reference_review_yaml.replace("status: aligned", "status: needs_adjustment")
    edit(layout, case_id, review=review, status="needs_adjustment")
    assert land_corrections(layout).cases == [case_id]
    assert layout.eval_cases.samefile(own)
    assert case_of(layout, case_id).status == "needs_adjustment"


def test_all_faults_are_listed_and_nothing_is_taken(layout: Layout) -> None:
    """An invalid answer, a changed input, a status that contradicts its review, an unknown row."""
    case_id = disagreeing(layout)
    one, other = [found for found in collected(layout).candidates if found.kind == "teacher_row"]
    edit(layout, one.identifier, review="status: aligned\n")
    edit(layout, other.identifier, concept="Another concept", vision="product_name: A\nproduct_summary: B\n")
    edit(layout, case_id, status="conflicts")
    entries = yaml.safe_load(layout.review_file.read_text())
    entries.append(entries[0] | {"id": "0" * 16})
    layout.review_file.write_text(yaml.safe_dump(entries, sort_keys=False))
    before = layout.eval_cases.read_bytes()
    text = refused(layout)
    for fault in (
        f"the corrected answer to {one.place} is not valid: the REVIEW has no summary",
        f"the concept of {other.place} was changed; only answers are corrected here",
        f"row {'0' * 16} has not landed, or not any more",
        f"case {case_id} is not valid: its REVIEW says status 'aligned', the entry's own field `status` says ",
    ):
        assert fault in text
    assert text.startswith("4 faults in ")
    assert not text.endswith("..")
    assert layout.eval_cases.read_bytes() == before
    assert layout.review_file.exists()


def test_a_correction_that_scores_too_little_lands_with_a_warning(layout: Layout) -> None:
    """The person decides; what will become of it is said."""
    one = collected(layout).candidates[0]
    edit(layout, one.identifier, vision="product_name: Thin\nproduct_summary: Thin.\n")
    landed = land_corrections(layout)
    assert len(landed.rows) == 1
    assert "with a min_score of 0.82 it is left out of training, and so is the old one" in landed.notes[0]


def test_a_row_whose_correction_waits_for_the_next_run_is_no_candidate(layout: Layout) -> None:
    """Two corrections of one row would both be trained on."""
    one = collected(layout).candidates[0]
    better(layout, one)
    land_corrections(layout)
    assert one.identifier not in {other.identifier for other in collected(layout).candidates}


def test_what_changed_since_the_file_was_written_is_not_undone(layout: Layout) -> None:
    """An entry that nobody touched leaves the newer reference alone; a correction of the old one is refused."""
    case_id = disagreeing(layout)
    one = next(one for one in collected(layout).candidates if one.identifier == case_id)
    newer = layout.eval_cases.read_text().replace("narrative: ", "narrative: Once more. ")
    layout.eval_cases.write_text(newer)
    assert land_corrections(layout).cases == []
    assert layout.eval_cases.read_text() == newer
    edit(layout, case_id, verdict="right")
    assert f"the answer of case {case_id} has changed since this file was written" in refused(layout)
    edit(layout, case_id, verdict="")
    better(layout, one)
    assert "correct it there, and take the entry out" in refused(layout)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("- candidate: [", "is not YAML any more"),
        ("just text", "must hold a list of entries"),
        ("[]\n", "holds no entry: there is nothing to take"),
        ("- id: x\n  verdict: right\n  verdict: ''\n", "is not YAML any more: line 3: the key 'verdict' stands twice"),
        ("- id: 2026-13-45\n", "line 1: '2026-13-45' cannot be read (month must be in 1..12"),
        (
            "- &a {candidate: teacher_row, id: x, concept: c, requirements: r, vision: v, review: w}\n- *a\n",
            "has 1 fault: x has 2 entries; keep one",
        ),
        (
            "- candidate: teacher_row\n  id: x\n  concept: 3\n",
            "must have a concept that is text; entry 1 (x) must have a requirements that is text",
        ),
        ("- candidate: other\n  concept: a\n  requirements: a\n  vision: a\n  review: a\n", "of kind 'other'"),
    ],
)
def test_a_broken_review_file_is_named_with_its_faults(layout: Layout, text: str, reason: str) -> None:
    """In one sentence or two; nothing lands."""
    layout.review_file.parent.mkdir(exist_ok=True)
    layout.review_file.write_text(text)
    assert reason in " ".join(refused(layout).split())


@pytest.mark.parametrize(
    ("old", "new", "verdict", "said"),
    [
        *(
            (
                "status: {status}",
                f"status: {wrong}",
                "",
                r"not valid: the REVIEW's status is .*aligned, .* or conflicts\.$",
            )
            for wrong in ("unaligned", "on_track", "[aligned]")
        ),
        ("narrative:", "# \ud800\nnarrative:", "", "it holds half of a character, which no UTF-8 file can hold"),
        ("narrative:", "narrative: So,", "right", "{place} was changed, and its verdict is 'right': undo"),
        ("narrative:", "narrative:", "wrong", "has the verdict 'wrong': write 'right', or leave it empty"),
    ],
)
def test_a_correction_that_cannot_be_taken_says_why(
    layout: Layout, old: str, new: str, verdict: str, said: str
) -> None:
    """Rejected, it would replace nothing, and the old answer would be trained on; changed, it was not right."""
    one = collected(layout).candidates[0]
    review = one.review.replace(old.format(status=one.status), new)
    edit(layout, one.identifier, review=review, verdict=verdict)
    assert re.search(said.format(place=re.escape(f"answer of {one.place}")), refused(layout))
    assert not layout.approved_answers.exists()


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(["teacher_row", "evaluation_case"]),
    status=st.sampled_from([*STATUSES, " Conflicts ", "misaligned", "[aligned]", "2026-01-01", "", "null", "'\0'"]),
    narrative=st.text(max_size=40),
    tail=st.sampled_from(["", "\n```", "\n]", "\n...", "\n---\na: b", "\nstatus: on_track", "\n\x85x: 1"]),
)
def test_every_corrected_answer_that_is_taken_can_be_read(
    tmp_path_factory: pytest.TempPathFactory, kind: str, status: str, narrative: str, tail: str
) -> None:
    """A row by normalization, with the score it declares; a case by the evaluation, with the status of its review."""
    layout = take_in(land(tmp_path_factory.mktemp("root"), teacher=[teacher_rows(1)[0] | {"score": 0.99}]))
    case_id = disagreeing(layout)
    (one,) = (one for one in collected(layout, worst_cases=0).candidates if one.kind == kind)
    review = one.review.replace(f"status: {one.status}", f"status: {status}")
    changed = review.split("narrative:")[0] + f"narrative: {json.dumps(narrative)}{tail}"
    edit(layout, one.identifier, review=changed, status="")
    try:
        landed = land_corrections(layout)
    except UserError:
        return
    if kind == "evaluation_case":
        case = case_of(layout, case_id)
        assert read_status(case.reference_review_yaml) == case.status
        return
    assert [entry["outcome"] for entry in close(take_in(layout))].count("replaced") == 1
    (row,) = (row for row in read_rows(layout.normalized) if row["file"] == landed.file)
    assert row["declared_score"] == row["metric_score"]


def test_a_faulty_reference_is_one_fault_and_a_status_is_set_in_two_places(layout: Layout) -> None:
    """Not one for each reader that stumbles over it; the field to set is named."""
    case_id = disagreeing(layout)
    collected(layout)
    case = case_of(layout, case_id)
    edit(layout, case_id, review="status: [aligned")
    assert re.search(rf"^1 fault .* case {case_id} is not valid: REVIEW: line 2", refused(layout))
    edit(layout, case_id, review=case.reference_review_yaml.replace("status: aligned", "status: conflicts"))
    assert refused(layout) == (
        f"1 fault in {str(layout.review_file)!r}, nothing was taken: the corrected reference of case {case_id} is "
        "not valid: its REVIEW says status 'conflicts', the entry's own field `status` says 'aligned'; set `status: "
        "conflicts` in the entry, or correct the REVIEW."
    )
    edit(layout, case_id, status="conflicts")
    assert land_corrections(layout).cases == [case_id]
    assert case_of(layout, case_id).status == "conflicts"


def test_what_stands_in_the_way_of_landing_is_named(layout: Layout) -> None:
    """A case that is none, a table that someone cleaned up."""
    case_id = disagreeing(layout)
    better(layout, collected(layout).candidates[0])
    edit(layout, case_id, status="needs_adjustment")
    layout.eval_cases.write_text("7\n" + layout.eval_cases.read_text())
    said = refused(layout)
    assert f"The evaluation cases {str(layout.eval_cases)!r} have 1 fault. Correct the file and materialize" in said
    assert "line 1: not a JSON object: the line holds a number" in said

    layout.normalized.unlink()
    assert "po_teacher_normalized.jsonl': materialize normalized_teacher" in refused(layout)


def test_an_approved_answer_makes_room_for_the_next(layout: Layout) -> None:
    """It stays what it is, is counted, and comes back when its line is deleted."""
    found = collected(layout, max_candidates=1)
    (one,) = found.candidates
    assert found.more == {"teacher_row": 1, "evaluation_case": 0}
    edit(layout, one.identifier, verdict="right")
    told: list[str] = []
    assert review_file.land(layout, told.append) == 0
    assert told == ["1 answer was approved and not shown again (curation/po_found_right.jsonl)."]
    assert not layout.review_file.exists()
    assert not list(layout.incoming.glob("corrections-*"))
    found = collected(layout, max_candidates=1)
    (other,) = found.candidates
    assert other.identifier != one.identifier
    assert (found.more["teacher_row"], found.approved) == (0, {"teacher_row": 1, "evaluation_case": 0})

    edit(layout, other.identifier, verdict="right")
    land_corrections(layout)
    found = collected(layout)
    assert (found.candidates, found.approved["teacher_row"]) == ([], 2)
    remembered = layout.approved_answers
    lines = remembered.read_text().splitlines()
    remembered.write_text("\n" + "".join(f"{line}\n" for line in lines if one.identifier not in line))
    assert [left.identifier for left in collected(layout).candidates] == [one.identifier]
    remembered.write_text("gone\n")
    with pytest.raises(UserError, match=r"Line 1 of .* is 'gone', a JSON object with candidate, id, answer"):
        collected(layout)


def test_a_case_found_right_is_shown_again_when_its_reference_changes(layout: Layout) -> None:
    """What was found right is that answer, not the case."""
    case_id = disagreeing(layout)
    collected(layout, worst_cases=0)
    edit(layout, case_id, verdict="Right")
    assert land_corrections(layout).untouched == 2
    assert case_id not in {one.identifier for one in collected(layout, worst_cases=0).candidates}
    cases = [json.loads(line) for line in layout.eval_cases.read_text().splitlines()]
    for case in cases:
        case["reference_vision_yaml"] += "\nmotto: Another" if case["case_id"] == case_id else ""
    layout.eval_cases.write_text("".join(json.dumps(case) + "\n" for case in cases))
    disagreeing(layout)
    assert case_id in {one.identifier for one in collected(layout, worst_cases=0).candidates}
