"""Re-scoring answers made elsewhere: same metric, gate and report, no model; bad files are named line by line."""

import json
from pathlib import Path
from typing import Any

import pytest

from po_assets.evaluation.rescore import main
from po_assets.storage import stage_jsonl
from po_assets_tests.evaluation.scenes import GOOD, REVIEW, VISION, cases, cases_table


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from upath import UPath

    monkeypatch.setenv("PO_ARTIFACTS_ROOT", str(tmp_path))
    stage_jsonl(UPath(tmp_path / "evaluation" / "po_eval_cases.jsonl"), [cases_table(cases(40))]).publish()
    return tmp_path


def answers(path: Path, records: Any) -> str:
    path.write_text(json.dumps(records))
    return str(path)


def good() -> list[dict[str, str]]:
    return [{"case_id": item.case_id, "vision_yaml": VISION, "review_yaml": REVIEW} for item in cases(40)]


def test_good_answers_pass_against_a_given_baseline(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Blocks or whole texts; a table on the console, a report in the folder."""
    before = answers(folder / "before.json", {"cases": [{"case_id": "EVAL-01", "text": GOOD}]})
    status = main([answers(folder / "after.json", good()), "--baseline", before, "--output", str(folder / "out")])
    printed = capsys.readouterr().out
    assert status == 0
    assert "mean_score" in printed
    assert "The gate passed." in printed
    assert "The gate passed" in (folder / "out" / "po_rescored_report.html").read_text()
    assert len(json.loads((folder / "out" / "po_rescored_report.json").read_text())["cases"]) == 40


def test_missing_answers_count_and_fail_the_gate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten of forty are missing: the mean has to bear it."""
    before = answers(folder / "before.json", good())
    assert main([answers(folder / "after.json", good()[:30]), "--baseline", before]) == 1
    printed = capsys.readouterr().out
    assert "75.0%  FAIL" in printed
    assert "40" in printed.splitlines()[0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "holds no list of answers"),
        ('[{"case_id": "EVAL-01"}]', "answer 1 lacks case_id, or vision_yaml and review_yaml (or text)"),
        ('[{"case_id": "X", "text": ""}]', "answer 1 is of case 'X', which is not among the 40 cases"),
        (
            '[{"case_id": "EVAL-01", "text": ""}, {"case_id": "EVAL-01", "text": ""}]',
            "answer 2 is a second one to case",
        ),
        ("[3]", "answer 1 lacks case_id"),
    ],
)
def test_a_file_that_is_no_set_of_answers_is_refused(
    content: str, reason: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With exit status 2 and the place."""
    path = folder / "after.json"
    path.write_text(content)
    assert main([str(path), "--baseline", answers(folder / "before.json", good())]) == 2
    assert reason in capsys.readouterr().err


def test_without_any_baseline_the_way_out_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The delta cannot be measured against nothing."""
    assert main([answers(folder / "after.json", good())]) == 2
    assert "give one with --baseline, or materialize baseline_report" in capsys.readouterr().err
