"""`po-assets run`, as `make run` calls it: the real student on the sample data, and what a user sees when input is bad."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """An artifact root with the sample data, and an instance of its own."""
    shutil.copytree(REPOSITORY / "artifacts" / "incoming", tmp_path / "artifacts" / "incoming")
    cases = Path("evaluation") / "po_eval_cases.jsonl"
    (tmp_path / "artifacts" / "evaluation").mkdir()
    shutil.copy(REPOSITORY / "artifacts" / cases, tmp_path / "artifacts" / cases)
    (tmp_path / "home").mkdir()
    shutil.copy(REPOSITORY / "deploy" / "local" / "dagster.yaml", tmp_path / "home")
    return tmp_path


def run(workplace: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PO_ARTIFACTS_ROOT": str(workplace / "artifacts"),
        "DAGSTER_HOME": str(workplace / "home"),
        "PYTHONWARNINGS": "ignore",
        **variables,
    }
    command = [sys.executable, "-m", "po_assets.cli", "run"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def keep_one_case(workplace: Path) -> None:
    """The baseline does not depend on the teacher rows, and is asked also when they are bad."""
    cases = workplace / "artifacts" / "evaluation" / "po_eval_cases.jsonl"
    cases.write_text(cases.read_text().splitlines()[0] + "\n")


@pytest.mark.slow
def test_the_sample_data_make_a_student_that_passes_the_gate(workplace: Path) -> None:
    """Everything real: SmolLM2-135M is trained on 359 rows and compared with its base model on 40 cases."""
    result = run(workplace)
    print(result.stdout[-6000:], result.stderr[-2000:])
    assert result.returncode == 0

    root = workplace / "artifacts"
    supervised = (root / "distillation" / "po_teacher_supervised.jsonl").read_text()
    assert supervised.count("\n") == 359
    statuses = Counter(re.findall("status: [a-z_]*", supervised))
    assert statuses == {"status: aligned": 240, "status: conflicts": 10, "status: needs_adjustment": 109}
    ledger = (root / "distillation" / "po_teacher_ledger.jsonl").read_text().splitlines()
    assert Counter(json.loads(line)["outcome"] for line in ledger) == {"kept": 359, "below_min_score": 20}

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    (base,) = [folder for folder in (root / "models" / "base").iterdir() if folder.is_dir()]
    student = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), root / "models" / "po_student_v2")
    assert student.peft_config["default"].r == 32

    shown = result.stdout
    assert re.search(r"lora_adapter +.*step +\d+.*loss", shown)
    for threshold in ("case_count", "mean_score", "score_std", "delta_vs_baseline", "valid_answers"):
        assert re.search(rf"{threshold}.*pass", shown), threshold
    assert "FAIL" not in shown

    again = run(workplace)
    assert again.returncode == 0
    assert re.search(r"lora_adapter +Unchanged", again.stdout)


@pytest.mark.slow
def test_an_empty_landing_folder_is_one_clear_message(workplace: Path) -> None:
    """With the place and the way out, and a failing exit status."""
    shutil.rmtree(workplace / "artifacts" / "incoming")
    keep_one_case(workplace)
    result = run(workplace)
    assert result.returncode == 1
    assert f"The landing folder '{workplace}/artifacts/incoming' does not exist." in " ".join(result.stdout.split())
    assert "Traceback" not in result.stdout


def test_bad_rows_stop_the_run_at_the_right_check(workplace: Path) -> None:
    """The check says how many, which, why and what to do, before the baseline is asked; nothing is trained."""
    bad = workplace / "artifacts" / "incoming" / "2026-11-bad.jsonl"
    bad.write_text("no json at all\n" * 30)
    keep_one_case(workplace)
    result = run(workplace)
    shown = " ".join(result.stdout.split())
    assert result.returncode == 1
    assert "normalized_teacher: rejected_share 30 of 409" in shown
    assert "What to do:" in shown
    assert shown.index("the check rejected_share FAILED: 30 of 409") < shown.index(
        "baseline: 0 of 1 answers are cached"
    )
    assert "No gate: the student was not evaluated in this run; what it needs did not pass." in shown
    assert "Not executing" not in shown
    assert not (workplace / "artifacts" / "models" / "po_student_v2").exists()
    ledger = (workplace / "artifacts" / "distillation" / "po_teacher_ledger.jsonl").read_text().splitlines()
    assert Counter(json.loads(line)["outcome"] for line in ledger)["rejected"] == 30


def test_the_paper_profile_refuses_without_a_gpu(workplace: Path) -> None:
    """Before any work, with the way out."""
    result = run(workplace, PO_PROFILE="paper", CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 1
    assert "CUDA" in result.stderr
    assert not (workplace / "artifacts" / "models" / "po_student_v2").exists()


@pytest.mark.parametrize(("variable", "value"), [("PO_GPUS", "two"), ("PO_NUM_WORKERS", "0"), ("PO_EXECUTOR", "slurm")])
def test_a_wrong_variable_is_one_clear_message(workplace: Path, variable: str, value: str) -> None:
    """Quoting the value, without a traceback."""
    result = run(workplace, **{variable: value})
    assert result.returncode == 1
    assert f"{variable} is {value!r}" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_a_second_run_on_the_same_artifacts_is_refused(workplace: Path) -> None:
    """Two runs would publish over each other."""
    with (workplace / "artifacts" / ".run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = run(workplace)
    assert result.returncode == 1
    assert "Another run writes to" in result.stderr
