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
import yaml

from po_assets import cli
from po_assets_tests.model.tiny_model import make_tiny_model

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


def of_little_work(workplace: Path) -> dict[str, str]:
    """One case, asked of a tiny model: the baseline does not depend on the teacher rows, and is asked also when they are bad."""
    cases = workplace / "artifacts" / "evaluation" / "po_eval_cases.jsonl"
    cases.write_text(cases.read_text().splitlines()[0] + "\n")
    settings = {
        "base_model": {"base_model": str(make_tiny_model(workplace / "tiny", context=16384))},
        "decoding": {"mode": "free", "max_new_tokens": 4, "free_cases": 0},
    }
    (workplace / "settings.yaml").write_text(yaml.safe_dump(settings))
    return {"PO_SETTINGS": str(workplace / "settings.yaml")}


@pytest.fixture
def here(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The workplace of commands in this process."""
    monkeypatch.setenv("PO_ARTIFACTS_ROOT", str(workplace / "artifacts"))
    monkeypatch.setenv("DAGSTER_HOME", str(workplace / "home"))
    return workplace


@pytest.mark.slow
def test_the_sample_data_make_a_student_that_passes_the_gate(workplace: Path) -> None:
    """Everything real: SmolLM2-135M is trained and compared with its base model on 40 cases.

    On less than half of the rows and few comparisons: they teach to judge, which is not asked here.
    """
    settings = workplace / "settings.yaml"
    settings.write_text(yaml.safe_dump({"recipe": {"epochs": 0.4, "comparisons": 0.25}}))
    result = run(workplace, PO_SETTINGS=str(settings))
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

    again = run(workplace, PO_SETTINGS=str(settings))
    assert again.returncode == 0
    assert re.search(r"lora_adapter +Unchanged", again.stdout)


def test_bad_rows_stop_the_run_at_the_right_check(workplace: Path) -> None:
    """The check says how many, which, why and what to do, before the baseline is asked; nothing is trained."""
    bad = workplace / "artifacts" / "incoming" / "2026-11-bad.jsonl"
    bad.write_text("no json at all\n" * 30)
    result = run(workplace, **of_little_work(workplace))
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


def test_the_paper_profile_refuses_without_a_gpu(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any work, with the way out."""
    monkeypatch.setenv("PO_PROFILE", "paper")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert cli.main(["run"]) == 1
    assert "CUDA" in capsys.readouterr().err
    assert not (here / "artifacts" / "models" / "po_student_v2").exists()


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("PO_EXECUTOR", "slurm", "; choose 'in_process', 'ray' or 'kubernetes'."),
        pytest.param("PO_GPUS", "two", ". Use 1 ", marks=pytest.mark.slow),
        pytest.param("PO_NUM_WORKERS", "0", "", marks=pytest.mark.slow),
    ],
)
def test_a_wrong_variable_is_one_clear_message(workplace: Path, variable: str, value: str, said: str) -> None:
    """Read when the code location is loaded; quoting the value, without a traceback."""
    result = run(workplace, **{variable: value})
    assert result.returncode == 1
    assert f"{variable} is {value!r}{said}" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_a_second_run_on_the_same_artifacts_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two runs would publish over each other."""
    with (here / "artifacts" / ".run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert cli.main(["run"]) == 1
    assert "Another run writes to" in capsys.readouterr().err
