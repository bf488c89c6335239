"""Reading the evaluation cases."""

import json
from pathlib import Path

import pytest
from upath import UPath

from po_assets.dataset.cases import read_eval_cases
from po_assets.errors import UserError
from po_assets_tests.dataset.tables import case


def write(tmp_path: Path, *lines: object) -> UPath:
    """A file of cases, from objects or raw text."""
    path = UPath(tmp_path / "cases.jsonl")
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_good_cases_are_read(tmp_path: Path) -> None:
    """In order, as they stand."""
    cases = read_eval_cases(write(tmp_path, case(1), case(2, "conflicts")))
    assert [one.case_id for one in cases] == ["case-1", "case-2"]
    assert cases[1].status == "conflicts"


def test_all_faults_of_the_file_are_named_at_once(tmp_path: Path) -> None:
    """Line by line, with the values."""
    path = write(
        tmp_path,
        "{",
        "[1]",
        {key: value for key, value in case(1).items() if key not in ("concept", "tier")} | {"note": "x"},
        case(2) | {"status": "fine"},
        case(3) | {"status": "conflicts"},
        case(4) | {"tier": "huge", "requirements_yaml": "a: ["},
        case(5),
        case(5),
        case(5) | {"case_id": "other"},
    )
    with pytest.raises(UserError) as raised:
        read_eval_cases(path)
    message = str(raised.value)
    assert message.startswith(f"The evaluation cases {str(path)!r} have ")
    for fault in (
        "line 1: it is no JSON",
        "line 2: it is no JSON object",
        "line 3: tier is missing or no text; line 3: concept is missing or no text; line 3: unknown key 'note'",
        "line 4: status is 'fine', expected is one of aligned, needs_adjustment, conflicts",
        "line 5: status is 'conflicts', but the reference review says 'aligned'",
        "line 6: tier is 'huge', expected is one of simple, medium, corporate",
        "line 6: requirements_yaml does not parse: ",
        "case_id 'case-5' stands twice",
        "case 'other' has the same input as 'case-5'",
        "Correct the file and materialize eval_cases again.",
    ):
        assert fault in message


def test_many_faults_are_cut_to_a_readable_number(tmp_path: Path) -> None:
    """The rest is counted."""
    with pytest.raises(UserError, match=r"have 30 faults: .*; and 10 more\. Correct"):
        read_eval_cases(write(tmp_path, *["{"] * 30))


def test_an_empty_file_is_a_fault(tmp_path: Path) -> None:
    """Nothing to evaluate is no success."""
    with pytest.raises(UserError, match="have 1 fault: it is empty"):
        read_eval_cases(write(tmp_path))


def test_a_missing_file_names_the_way_out(tmp_path: Path) -> None:
    """Where it should be and how to bring it back."""
    path = UPath(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=r"do not exist\. Put the file there"):
        read_eval_cases(path)
