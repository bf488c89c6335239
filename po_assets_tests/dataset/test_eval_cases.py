"""Reading the evaluation cases: in their own form, in every record format, as JSON lines and as YAML."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from upath import UPath

from po_assets.dataset.cases import read_case_file, read_eval_cases
from po_assets.errors import UserError
from po_assets.product_owner import build_prompt
from po_assets.storage import Layout
from po_assets_tests.dataset.tables import case, texts
from po_assets_tests.intake.landed_rows import chat_row, nested_row, pair_row, prompt_output_row, teacher_row

INPUT = {name: case(1)[name] for name in ("concept", "requirements_yaml")}
GIVEN = texts(1)
ASKED = {"messages": [{"role": "user", "content": build_prompt(**INPUT)}]}


def write(tmp_path: Path, *lines: object) -> UPath:
    """A file of cases, from objects or raw text."""
    path = UPath(tmp_path / "cases.jsonl")
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def nested(status: str = "aligned", **asked: Any) -> dict[str, Any]:
    """A case in the nested record format."""
    row = nested_row(texts(1, status))
    return row | {"input": row["input"] | asked}


def test_a_case_needs_no_more_than_its_input(tmp_path: Path) -> None:
    """Id, tier, reference and status may be absent, or null; the id is then a digest of the input."""
    (one,) = read_eval_cases(write(tmp_path, INPUT | {"status": None, "reference_review_yaml": None}))
    assert one.case_id == f"case-{one.input_digest[:8]}"
    assert (one.tier, one.reference_vision_yaml, one.reference_review_yaml, one.status) == ("", "", "", None)
    assert (one.has_reference, one.reference_conflicts) == (False, 0)


def test_the_right_status_may_be_known_without_a_reference_answer(tmp_path: Path) -> None:
    """Whoever writes the case knows it; an id may be a number."""
    (one,) = read_eval_cases(write(tmp_path, INPUT | {"case_id": 7, "status": "conflicts"}))
    assert (one.case_id, one.status, one.has_reference) == ("7", "conflicts", False)


@pytest.mark.parametrize(
    ("row", "case_id"),
    [
        (nested(), "C-1"),
        (teacher_row(GIVEN), "case-"),
        (pair_row(GIVEN), "case-"),
        (prompt_output_row(GIVEN), ""),
        (chat_row(GIVEN), "case-"),
        (pair_row(GIVEN) | {"case_id": "mine", "status": "aligned"}, "mine"),
        (INPUT | {"case_id": "mine", "output": pair_row(GIVEN)["response"]}, "mine"),
    ],
    ids=["nested", "teacher", "pair", "prompt/output", "chat", "pair with an id", "columns with a finished answer"],
)
def test_every_record_format_of_rows_is_one_of_cases(tmp_path: Path, row: dict[str, Any], case_id: str) -> None:
    """By the same code; the row's answer is the reference."""
    (one,) = read_eval_cases(write(tmp_path, row))
    assert one.case_id.startswith(case_id)
    assert one.prompt == build_prompt(**INPUT)
    assert one.reference_vision_yaml.strip() == GIVEN["vision"].strip()
    assert one.reference_review_yaml.strip() == GIVEN["review"].strip()
    assert one.status == "aligned"


@pytest.mark.parametrize(
    "row",
    [
        {"input": nested()["input"]},
        ASKED,
        {"prompt": build_prompt(**INPUT)},
        {"custom_id": "1", "body": ASKED},
    ],
    ids=["nested", "chat", "prompt", "batch"],
)
def test_a_record_without_an_answer_is_a_case_without_reference(tmp_path: Path, row: dict[str, Any]) -> None:
    """What is needed of a training row is not needed of a case."""
    (one,) = read_eval_cases(write(tmp_path, row))
    assert one.prompt == build_prompt(**INPUT)
    assert (one.has_reference, one.status) == (False, None)


def test_statuses_are_read_by_their_aliases_and_noted(tmp_path: Path) -> None:
    """The agent says misaligned where the data say conflicts; the reference then has the data's word."""
    own = INPUT | {"concept": "Another product", "status": "misaligned"}
    file = read_case_file(write(tmp_path, own, nested("misaligned")))
    assert [one.status for one in file.cases] == ["conflicts", "conflicts"]
    assert "status: conflicts" in file.cases[1].reference_review_yaml
    assert file.notes == [
        {"case": "line 1", "note": "status 'misaligned' was read as 'conflicts'"},
        {"case": "line 2", "note": "the reference review's status 'misaligned' was read as 'conflicts'"},
    ]


def test_an_existing_vision_is_part_of_what_is_asked(tmp_path: Path) -> None:
    """Two cases that differ in nothing else are two."""
    vision = "product_name: Old\nproduct_summary: What there was"
    file = read_case_file(write(tmp_path, INPUT, INPUT | {"existing_vision_yaml": vision}))
    assert file.cases[1].prompt == build_prompt(**INPUT, existing_vision_yaml=vision)
    assert file.cases[0].case_id != file.cases[1].case_id


def test_documents_of_the_own_form_are_read_as_those_of_rows(tmp_path: Path) -> None:
    """Fences and sentences around them are no part of them; a vision that is said to be none is none, as is a blank."""
    fenced = f"Here it is:\n```yaml\n{INPUT['requirements_yaml']}\n```"
    own = INPUT | {"requirements_yaml": fenced, "existing_vision_yaml": "No existing vision yet.", "status": ""}
    file = read_case_file(write(tmp_path, own))
    assert [one.prompt for one in file.cases] == [build_prompt(**INPUT)]
    assert "REQUIREMENTS: text before the fenced document was left out" in file.notes[0]["note"]


@pytest.mark.parametrize(
    ("asked", "fault"),
    [
        ({"concept": " "}, "line 1: concept is blank"),
        ({"requirements_yaml": "{}"}, "line 1: the REQUIREMENTS '{}' ask for nothing"),
        ({"requirements_yaml": "title: none\nconstraints: [{id: C001}]"}, "ask for nothing"),
    ],
)
def test_a_case_that_asks_for_nothing_is_a_fault(tmp_path: Path, asked: dict[str, str], fault: str) -> None:
    """As such a row is refused."""
    with pytest.raises(UserError, match=fault):
        read_eval_cases(write(tmp_path, INPUT | asked))


def test_a_concept_asked_about_twice_gives_two_ids(tmp_path: Path) -> None:
    """Whatever the order of the file, the names are the same."""
    rows = [nested(), nested(concept="Another product, for somebody else")]
    there = [one.case_id for one in read_eval_cases(write(tmp_path, *rows))]
    back = [one.case_id for one in read_eval_cases(write(tmp_path, *rows[::-1]))]
    assert there == back[::-1]
    assert len(set(there)) == 2
    assert all(name.startswith("C-1-") for name in there)


def test_yaml_says_the_same_as_json_lines(tmp_path: Path) -> None:
    """A list of mappings; a document may stand as the mapping that it is."""
    path = UPath(tmp_path / "other.yaml")
    mapped = nested(concept="Another product", requirements_yaml=yaml.safe_load(INPUT["requirements_yaml"]))
    path.write_text(yaml.safe_dump([case(1), mapped | {"case_id": 5}], sort_keys=False))
    first, second = read_eval_cases(path)
    assert [first] == read_eval_cases(write(tmp_path, case(1)))
    assert (second.case_id, second.concept, second.status) == ("5", "Another product", "aligned")
    assert second.requirement_ids == first.requirement_ids == ("FR001", "FR002", "C001")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("case_id: 1\nconcept: x\n", "must be a YAML list with a mapping for each case"),
        ("- concept: x\n  concept: y\n", "line 2: the key 'concept' stands twice"),
        ("- [", "are not YAML: "),
        ("- just a text\n", "case 1: it must be a mapping, got 'just a text'"),
        ("", "have 1 fault.*it is empty"),
    ],
)
def test_a_yaml_file_of_another_shape_is_refused(tmp_path: Path, text: str, fault: str) -> None:
    """With what is there, and what is wanted."""
    path = UPath(tmp_path / "cases.yml")
    path.write_text(text)
    with pytest.raises(UserError, match=rf"(?s){fault}"):
        read_eval_cases(path)


def test_the_file_has_one_of_three_names(tmp_path: Path) -> None:
    """Two files would be two truths."""
    layout = Layout(UPath(tmp_path))
    folder = layout.eval_cases.parent
    folder.mkdir()
    assert layout.eval_cases.name == "po_eval_cases.jsonl"
    (folder / "po_eval_cases.yml").write_text(yaml.safe_dump([case(1)]))
    assert layout.eval_cases.name == "po_eval_cases.yml"
    assert read_eval_cases(layout.eval_cases)[0].case_id == "case-1"
    (folder / "po_eval_cases.jsonl").write_text(json.dumps(case(2)) + "\n")
    with pytest.raises(UserError, match=r"There are 2 files .*: po_eval_cases.jsonl and po_eval_cases.yml. Keep one"):
        read_eval_cases(layout.eval_cases)


def test_all_faults_of_the_file_are_named_at_once(tmp_path: Path) -> None:
    """Line by line, with the values."""
    misspelt = {key: value for key, value in case(1).items() if key != "concept"} | {"reference_visoin_yaml": "x"}
    path = write(
        tmp_path,
        "{",
        "[1]",
        misspelt | {"note": 1},
        case(2) | {"status": "fine", "tier": 3},
        case(3) | {"status": "conflicts"},
        case(4) | {"requirements_yaml": "a: ["},
        case(7) | {"reference_vision_yaml": ""},
        {"question": "?"},
        case(5),
        case(5),
        case(5) | {"case_id": "other"},
        case(8) | {"status": "fine"},
        case(9, "good") | {"status": None},
        INPUT | {"case_id": "mine", "output": "yes"},
    )
    with pytest.raises(UserError) as raised:
        read_eval_cases(path)
    message = str(raised.value)
    assert message.startswith(f"The evaluation cases {str(path)!r} have ")
    assert "Correct the file and materialize eval_cases again:" in message
    for fault in (
        "line 1: not JSON: ",
        "line 2: not a JSON object: the line holds an array, a row is a JSON object: '[1]'",
        "line 3: concept is missing",
        "line 3: unknown key 'reference_visoin_yaml'; did you mean 'reference_vision_yaml'?",
        "line 3: unknown key 'note'; remove it",
        "line 4: tier must be a string, got 3; put it in quotes",
        "line 5: status is 'conflicts', but the reference review says 'aligned'",
        "line 6: requirements_yaml does not parse: ",
        "line 7: its reference answer has no VISION; give both documents, or none",
        "line 8: unknown format: the row has question; known formats are ",
        "or the form of cases (case_id, tier, concept,",
        "line 12: status is 'fine', expected is one of aligned, needs_adjustment, conflicts",
        "line 13: the reference review's status is 'good', expected is one of ",
        "line 14: unknown key 'output'; remove it",
        "case_id 'case-5' stands twice",
        "case 'other' has the same input as 'case-5'; remove one of them",
    ):
        assert fault in message, fault


def test_many_faults_are_cut_to_a_readable_number(tmp_path: Path) -> None:
    """The rest is counted."""
    with pytest.raises(UserError, match=r"(?s)have 30 faults\. .*- and 10 more$"):
        read_eval_cases(write(tmp_path, *["{"] * 30))
