"""From a folder of data in the shape that teams bring to a verdict, by `po-assets run --data`, with a tiny base model."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.real_shape import FILES, write_data
from po_assets.product_owner import score_product_owner
from po_assets_tests.model.tiny_model import make_tiny_model

ROWS, CASES = 40, 6
SETTINGS: dict[str, Any] = {
    "recipe": {"rank": 4, "alpha": 8, "epochs": 0.25, "learning_rate": 1e-2, "precision": "float32"},
    "decoding": {"mode": "free", "max_new_tokens": 8, "free_cases": 0},
    "gate": {"name": "pilot", "case_count": CASES, "blocking": ["case_count"]},
}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_and_cases_have_the_shape_of_real_ones(tmp_path: Path) -> None:
    """The same bytes for a seed; every form, both words for a conflict, missing scores, disjoint cases."""
    first, again = tmp_path / "first", tmp_path / "again"
    written = write_data(first, 379, 34)
    write_data(again, 379, 34)
    assert sum(lines for path, lines in written.items() if path.parent.name == "incoming") == 379
    for path in written:
        assert path.read_bytes() == (again / path.relative_to(first)).read_bytes()
    assert {path.stem for path in written} == {*FILES, "eval_cases"}
    teacher = read(first / "incoming" / "first_teacher.jsonl")
    assert 1 <= sum(row["score"] is None for row in teacher) < len(teacher) / 8
    assert len({row["requirements_yaml"] for row in teacher}) < 0.8 * len(teacher)
    for row in teacher:
        vision, review = row["teacher_product_vision"], row["teacher_product_owner_review"]
        own = score_product_owner(row["requirements_yaml"], vision, review).total
        assert row["score"] in (None, own)
    logs = (first / "incoming" / "agent_logs.jsonl").read_text()
    assert "status: misaligned" in logs
    assert "status: conflicts" not in logs
    cases = read(first / "cases" / "eval_cases.jsonl")
    assert len(cases) == 34
    assert len([case for case in cases if "tier" not in case["input"]]) == 11
    assert not {case["input"]["concept"] for case in cases} & {row["concept"] for row in teacher}


@pytest.mark.slow
def test_such_a_folder_comes_to_a_verdict(tmp_path: Path) -> None:
    """The ledger balances, statuses are translated, logs are read; the profile decides, and with it the exit status."""
    data = tmp_path / "data"
    write_data(data, ROWS, CASES)
    base_model = {"base_model": str(make_tiny_model(tmp_path / "tiny", context=12_000)), "max_length": 12_000}
    settings = SETTINGS | {"base_model": base_model}
    result = run(data, tmp_path / "pilot.yaml", settings)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]

    ledger = read(data / "distillation" / "po_teacher_ledger.jsonl")
    outcomes = Counter(row["outcome"] for row in ledger)
    assert outcomes.total() == ROWS
    assert set(outcomes) <= {"kept", "invalid_target", "below_min_score"}
    assert ROWS / 8 < outcomes["invalid_target"] < ROWS / 2
    supervised = read(data / "distillation" / "po_teacher_supervised.jsonl")
    assert len(supervised) == outcomes["kept"]
    assert not any("status: misaligned" in row["response"] or "think>" in row["response"] for row in supervised)
    logs = [row for row in ledger if row["file"] == "agent_logs.jsonl"]
    assert len(logs) == 3
    assert all("the system message was left out of the prompt" in row["note"] for row in logs)
    landed = (data / "distillation" / "po_teacher_dataset.jsonl").read_text()
    translated = [row for row in ledger if "status 'misaligned' was read as 'conflicts'" in row["note"]]
    assert len(translated) == sum("status: misaligned" in line for line in landed.splitlines()) >= 1

    gate = json.loads((data / "evaluation" / "po_eval_gate.json").read_text())
    assert gate["context"]["profile"]["name"] == "pilot"
    assert gate["checks"]["case_count"]["passed"]
    assert "but for mean_score, valid_answers, which only warn there; does not judge" in gate["context"]["sentence"]
    assert (data / "models" / "po_student_v2" / "adapter_model.safetensors").is_file()
    assert (data / "evaluation" / "po_eval_report.html").is_file()

    strict = run(data, tmp_path / "strict.yaml", settings | {"gate": {"name": "strict", "case_count": 34}})
    shown = " ".join(strict.stdout.split())
    assert strict.returncode == 1, strict.stdout[-5000:] + strict.stderr[-2000:]
    assert "the gate 'strict' wants 34: it will fail" in shown
    assert re.search(r"lora_adapter +Unchanged", strict.stdout)
    assert "The student fails the gate (case_count, mean_score, valid_answers) of the profile strict" in shown


def run(data: Path, config: Path, settings: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """`po-assets run --data DATA --config CONFIG` as in a fresh shell."""
    config.write_text(yaml.safe_dump(settings))
    unset = {"PO_ARTIFACTS_ROOT": "", "DAGSTER_HOME": "", "PO_SETTINGS": "", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "po_assets.cli", "run", "--data", str(data), "--config", str(config)]
    return subprocess.run(command, env=os.environ | unset, capture_output=True, text=True, check=False)
