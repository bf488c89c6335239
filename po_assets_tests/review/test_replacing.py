"""A corrected row takes the place of the old one, in whatever order they land, and the ledger says so."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from po_assets.dataset.checks import supervised_checks
from po_assets.dataset.evidence import DatasetEvidence
from po_assets.dataset.settings import SelectionSettings
from po_assets.intake.ledger import balance
from po_assets.intake.normalization import line_id, replaced_record
from po_assets.storage import read_rows
from po_assets_tests.dataset.tables import WORD_COUNT, close, kept_numbers, normalized_tables, row
from po_assets_tests.intake.landed_rows import encode


def correction(of: dict[str, Any], number: int, status: str = "aligned", **more: Any) -> dict[str, Any]:
    """A row that replaces another."""
    return row(number, status, metadata={"replaces": line_id(encode(of))}, **more)


def ledger(folder: Path, **files: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The closed ledger over these landed files."""
    layout = normalized_tables(folder, **files)
    close(layout)
    return list(read_rows(layout.ledger))


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_the_old_row_is_replaced_wherever_the_new_one_lands(tmp_path: Path, names: tuple[str, str]) -> None:
    """Before or after it; the ledger names the line, balances, and only the new row is trained on."""
    old_file, new_file = names
    files = {old_file: [row(1), row(2)], new_file: [correction(row(2), 3)]}
    layout = normalized_tables(tmp_path, **files)
    close(layout)
    ledger = {(entry["file"], entry["line"]): entry for entry in read_rows(layout.ledger)}
    old = ledger[f"{old_file}.jsonl", 2]
    assert (old["outcome"], old["reason"]) == ("replaced", "replaced by a corrected row")
    assert old["detail"] == f"replaced by {new_file}.jsonl:1"
    new = ledger[f"{new_file}.jsonl", 1]
    assert (new["outcome"], new["detail"]) == ("kept", f"it replaces {old_file}.jsonl:2")
    assert sorted(kept_numbers(layout)) == [1, 3]
    assert not balance(layout).disagreements


def test_a_correction_of_a_correction_is_the_one_that_counts(tmp_path: Path) -> None:
    """Both older ones are replaced."""
    second = correction(row(1), 2)
    first, *older = ledger(tmp_path, a=[correction(second, 3), second, row(1)])
    assert first["outcome"] == "kept"
    assert [(entry["outcome"], entry["detail"]) for entry in older] == [
        ("replaced", "replaced by a.jsonl:1"),
        ("replaced", "replaced by a.jsonl:2"),
    ]


def test_every_copy_of_the_old_row_is_replaced_and_none_comes_back(tmp_path: Path) -> None:
    """Copies in other files are the same row; that the better answer scores too little does not make the old right."""
    entries = ledger(tmp_path, a=[row(1)], b=[row(1)], c=[correction(row(1), 2, score=0.5)])
    assert [entry["outcome"] for entry in entries] == ["replaced", "replaced", "below_min_score"]


def test_a_correction_of_nothing_is_kept_and_says_so(tmp_path: Path) -> None:
    """A record id that has not landed, and metadata that only looks like one."""
    entries = ledger(tmp_path, a=[correction(row(9), 1), row(2, metadata={"replaces": "the old one"}), row(3)])
    nothing = "it replaces nothing: no row has landed with the record id "
    assert [(entry["outcome"], entry["detail"]) for entry in entries] == [
        ("kept", f"{nothing}'{line_id(encode(row(9)))}'"),
        ("kept", f"{nothing}'the old one'"),
        ("kept", ""),
    ]
    assert replaced_record({"replaces": 7}) is None


def test_a_replaced_conflicts_row_is_not_called_lost(tmp_path: Path) -> None:
    """It is there in its corrected form."""
    old = row(1, "conflicts")
    layout = normalized_tables(tmp_path, a=[old, row(2), correction(old, 3, "conflicts")])
    close(layout)
    found = DatasetEvidence(layout, SelectionSettings(), WORD_COUNT)
    verdict = supervised_checks.verdicts(found, {"conflicts_share"})["conflicts_share"]
    assert verdict.passed
    assert verdict.numbers["lost_conflicts"] == 0


def test_the_choice_among_two_corrections_does_not_depend_on_landing(tmp_path: Path) -> None:
    """Both are kept; the ledger names the same one whichever landed first."""
    named = []
    for order in (1, -1):
        rows = [correction(row(1), 2), correction(row(1), 3)][::order]
        entries = ledger(tmp_path / str(order), a=[row(1)], b=rows)
        assert [entry["outcome"] for entry in entries] == ["replaced", "kept", "kept"]
        line = int(entries[0]["detail"].rpartition(":")[2])
        named.append(orjson.dumps(rows[line - 1]))
    assert named[0] == named[1]
