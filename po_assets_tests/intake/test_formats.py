"""Rows of every format give the same record; rows of none say what was found."""

from typing import Any

import pytest

from po_assets.intake.formats import FORMATS
from po_assets.intake.lines import Reason, Rejected
from po_assets.intake.normalization import normalize
from po_assets_tests.intake.landed_rows import (
    BUILDERS,
    CONCEPT,
    chat_row,
    line_of,
    nested_row,
    pair_row,
    prompt_output_row,
    teacher_row,
    vision_prompt_row,
)
from po_assets_tests.product_owner.documents_text import REQUIREMENTS, REVIEW, VISION


def reject(row: dict[str, Any]) -> Rejected:
    """The rejection of a row."""
    with pytest.raises(Rejected) as rejected:
        normalize(line_of(row))
    return rejected.value


@pytest.mark.parametrize("name", BUILDERS)
def test_each_format_is_detected_and_gives_the_same_texts(name: str) -> None:
    """What the student is shown does not depend on the format in which it landed."""
    row = normalize(line_of(BUILDERS[name]())).row
    assert row["format"] == name
    assert row["concept"] == CONCEPT
    assert row["requirements_yaml"] == REQUIREMENTS.strip()
    assert row["vision_yaml"] == VISION.strip()
    assert row["review_yaml"] == REVIEW.strip()
    assert row["status"] == "needs_adjustment"
    assert not row["vision_in_prompt"]


def test_every_format_has_a_row_in_these_tests() -> None:
    """A new format brings its test with it."""
    assert [known.name for known in FORMATS] == list(BUILDERS)


def test_formats_differ_in_what_they_match() -> None:
    """No two formats claim the same row."""
    for name, build in BUILDERS.items():
        assert [known.name for known in FORMATS if known.matches(build())] == [name]


def test_identifiers_and_metadata_are_kept() -> None:
    """What the teacher said about a row is not lost, wherever in the row it stands."""
    row = normalize(line_of(nested_row())).row
    assert (row["concept_id"], row["tier"]) == ("C-1", "medium")
    assert row["metadata"] == {"region": "EU", "seconds": 3}


def test_an_unknown_row_names_its_keys_and_the_known_formats() -> None:
    """The person who landed it can see what is missing from which format."""
    rejected = reject({"question": "?", "answer": "!"})
    assert rejected.reason == Reason.UNKNOWN_FORMAT
    assert rejected.detail.startswith("the row has question, answer; known formats are teacher (concept, requirements")
    assert all(known.name in rejected.detail for known in FORMATS)


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        (
            {"concept": " ", "teacher_product_vision": VISION},
            Reason.MISSING_PART,
            "concept is blank; requirements_yaml is missing; teacher_product_owner_review is missing",
        ),
        (teacher_row(concept=7), Reason.SCHEMA, "concept must be a string, got 7"),
        (
            {"input": {}, "output": {"product_vision": {"a": 1}}},
            Reason.MISSING_PART,
            (
                "input.concept is missing; input.requirements_yaml is missing; output.product_owner_review is missing; "
                "output.product_vision must be a string, got {'a': 1}"
            ),
        ),
        (prompt_output_row(prompt="Hello"), Reason.MISSING_PART, "the prompt has no CONCEPT section"),
        (prompt_output_row(prompt="Hello"), Reason.MISSING_PART, "the prompt has no REQUIREMENTS"),
        (prompt_output_row(output="```yaml VISION\na: 1\n```"), Reason.MISSING_PART, "the REVIEW block is missing"),
        (pair_row(response="no blocks"), Reason.MISSING_PART, "the VISION block is missing"),
        (
            chat_row(messages=[]),
            Reason.MISSING_PART,
            "there is no question of a user (roles found: none); there is no answer (roles found: none)",
        ),
        (chat_row(messages="hi"), Reason.SCHEMA, "messages must be an array, got 'hi'"),
        (chat_row(messages=[{"role": "user"}]), Reason.SCHEMA, "message 1 must have role and content as strings"),
        (chat_row(messages=[3]), Reason.SCHEMA, "message 1 must have role and content"),
    ],
)
def test_a_row_with_parts_missing_names_all_of_them(row: dict[str, Any], reason: Reason, detail: str) -> None:
    """One rejection says everything that is wrong with the row's form."""
    rejected = reject(row)
    assert rejected.reason == reason
    assert detail in rejected.detail
    assert rejected.format_name is not None


def test_of_several_turns_the_last_answered_one_is_read() -> None:
    """As in few-shot prompts; the others are named, and the last question must stand for itself."""
    earlier = chat_row({"concept": "An appointment desk for village vets"})["messages"]
    row = chat_row(messages=[*earlier, *chat_row()["messages"][1:], {"role": "user", "content": "Thank you."}])
    normalized = normalize(line_of(row))
    assert normalized.row["concept"] == CONCEPT
    assert "2 earlier messages before the last question were not read" in normalized.notes
    assert "1 later message after the answer was not read" in normalized.notes
    row["messages"] += [{"role": "assistant", "content": pair_row()["response"]}]
    assert "the prompt has no CONCEPT section" in reject(row).detail


def test_chat_content_may_come_in_parts() -> None:
    """Some services split a message into parts of type text."""
    row = chat_row()
    for message in row["messages"]:
        text = message["content"]
        message["content"] = [{"type": "text", "text": text[:10]}, {"type": "text", "text": text[10:]}]
    assert normalize(line_of(row)).row["concept"] == CONCEPT


def test_a_vision_in_the_prompt_is_flagged_and_stands_in_for_a_missing_concept() -> None:
    """The template rows show the vision instead of a concept: its name and summary are all that is known."""
    normalized = normalize(line_of(vision_prompt_row()))
    assert normalized.row["vision_in_prompt"]
    assert normalized.row["concept"].startswith("Route Planner: A planner that helps dispatchers")
    assert normalized.row["metadata"] == {"concept_from": "vision"}
    assert "it was made from product_name and product_summary" in normalized.notes
    assert "it was left out of the prompt" in normalized.notes


def test_a_vision_without_name_and_summary_cannot_stand_in() -> None:
    """Then there is no concept, and the row says so."""
    prompt = "```yaml VISION\na: 1\n```\n```yaml REQUIREMENTS\nFR001: x\n```"
    assert "no CONCEPT section and no vision to take it from" in reject(prompt_output_row(prompt=prompt)).detail


def test_detecting_needs_no_particular_order_of_keys() -> None:
    """The keys decide, whatever stands around them."""
    pair = pair_row()
    assert normalize(line_of({"x": 1, "response": pair["response"], "prompt": pair["prompt"]})).row["format"] == "pair"
