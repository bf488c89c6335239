"""Re-scoring answers made elsewhere: same metric, gate and report, no model; bad files are named line by line."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from po_assets.cli import main
from po_assets.dag import stage_frames
from po_assets_tests.evaluation.scenes import GOOD, REVIEW, VISION, cases, cases_table


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PO_ARTIFACTS_ROOT", str(tmp_path))
    stage_frames(UPath(tmp_path / "evaluation" / "po_eval_cases.jsonl"), [cases_table(cases(40))]).publish()
    return tmp_path


def good() -> list[dict[str, str]]:
    return [{"case_id": item.case_id, "vision_yaml": VISION, "review_yaml": REVIEW} for item in cases(40)]


def rescore(folder: Path, after: Any, *options: str, before: Any = None) -> int:
    """The exit status for these answers, or for a file's text, against those of `before` where it is given."""
    (folder / "after.json").write_text(after if isinstance(after, str) else json.dumps(after))
    (folder / "before.json").write_text(json.dumps(before))
    baseline = ["--baseline", str(folder / "before.json")] if before else []
    return main(["rescore", str(folder / "after.json"), *baseline, "--output", str(folder / "out"), *options])


def test_good_answers_pass_against_a_given_baseline(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Blocks or whole texts; a table on the console, a report in the folder."""
    assert rescore(folder, good(), before={"cases": [{"case_id": "EVAL-01", "text": GOOD}]}) == 0
    printed = capsys.readouterr().out
    assert "mean_score" in printed
    assert f"The gate passed. Report: {folder / 'out' / 'po_rescored_report.html'}" in printed
    assert "The gate passed" in (folder / "out" / "po_rescored_report.html").read_text()
    assert len(json.loads((folder / "out" / "po_rescored_report.json").read_text())["cases"]) == 40


def test_the_gate_is_that_of_the_settings(folder: Path) -> None:
    """A project of its own has a gate of its own; 40 cases are not asked of it."""
    settings, cases_file, answers = folder / "ours.yaml", folder / "three.jsonl", folder / "answers.json"
    settings.write_text("gate: {name: ours, case_count: 3, blocking: [case_count]}\n")
    stage_frames(UPath(cases_file), [cases_table(cases(3))]).publish()
    answers.write_text(json.dumps(good()[:3]))
    given = ["--config", settings, "--cases", cases_file, "--baseline", answers, "--output", folder / "out", answers]
    done = subprocess.run(
        [sys.executable, "-m", "po_assets.cli", "rescore", *map(str, given)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.splitlines()[0].split()) == (0, ["case_count", "=", "3", "3", "pass"])
    settings.write_text("gat: {}\n")
    assert main(["rescore", str(answers), "--config", str(folder / "nowhere.yaml")]) == 2


def test_missing_answers_count_and_fail_the_gate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten of forty are missing: the mean has to bear it."""
    assert rescore(folder, good()[:30], before=good()) == 1
    printed = capsys.readouterr().out
    assert "75.0%  FAIL" in printed
    assert printed.splitlines()[0] == "10 of 40 cases have no answer; each counts as an empty one."
    assert printed.splitlines()[1].split() == ["case_count", "=", "40", "40", "pass"]


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
        ('[{"case_id": "EVAL-01", "vision_yaml": {"a": 1}, "review_yaml": "b"}]', "answer 1 lacks case_id"),
        (
            json.dumps(
                [
                    {"case_id": "EVAL-01", "text": "", "tokens": "many"},
                    {"case_id": "EVAL-02", "text": "", "seconds": math.nan},
                    {"case_id": "EVAL-03", "text": "", "finish_reason": "eos"},
                ]
            ),
            (
                "answer 1 (EVAL-01) has tokens 'many'; give a number of at least 0, or leave it out; answer 2 (EVAL-02) "
                "has seconds nan; give a number of at least 0, or leave it out; answer 3 (EVAL-03) has finish_reason "
                "'eos'; use one of stop, length, missing, or leave it out"
            ),
        ),
    ],
)
def test_a_file_that_is_no_set_of_answers_is_refused(
    content: str, reason: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With exit status 2 and the place."""
    assert rescore(folder, content, before=good()) == 2
    assert reason in capsys.readouterr().err


def test_the_answers_table_gives_the_report_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its lines are the unit of truth: no model is needed. What is null there counts as absent.

    Where no folder is given, the report stands beside the evaluation's own.
    """
    one = {"text": f"{GOOD}\u2028", "tokens": 7, "seconds": None}
    lines = [json.dumps({"case_id": r["case_id"], **one}, ensure_ascii=False) for r in good()]
    (folder / "po_student_answers.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    (folder / "before.json").write_text(json.dumps(good()))
    answers, baseline = str(folder / "po_student_answers.jsonl"), str(folder / "before.json")
    main(["rescore", answers, "--baseline", baseline])
    assert "mean_score" in capsys.readouterr().out
    report = json.loads((folder / "evaluation" / "po_rescored_report.json").read_text())
    assert len(report["cases"]) == 40


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (None, "give one with --baseline, or materialize baseline_report"),
        ("", "there are no evaluation cases in"),
        ("nowhere.jsonl", "there are no evaluation cases in"),
    ],
    ids=["no baseline", "a folder as cases", "no cases"],
)
def test_what_is_not_there_is_one_sentence(
    place: str | None, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the way out."""
    assert rescore(folder, good(), *([] if place is None else ["--cases", str(folder / place)])) == 2
    assert said in capsys.readouterr().err
