"""The two assets with their checks, run by Dagster over a tiny random model and adapter."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest
from upath import UPath

from po_assets.dag import Artifacts, JsonlIOManager, Tracking, read_frame, read_gate
from po_assets.dataset.settings import PromptSettings
from po_assets.evaluation import answering, evaluate, generate
from po_assets.evaluation.assets import baseline_report, eval_report
from po_assets.evaluation.checks import evaluation_checks
from po_assets.evaluation.evaluate import spread
from po_assets.evaluation.gate import current_gate, gate_path
from po_assets.evaluation.settings import CRITERIA, Decoding, GateProfile
from po_assets.model import BaseModel, base_model_digest, load_tokenizer
from po_assets.storage import Layout, Manifest, file_digest, write_manifest
from po_assets.training.adapter import CONFIG, WEIGHTS
from po_assets_tests.evaluation.scenes import GOOD, cases, cases_table
from po_assets_tests.model.tiny_model import make_tiny_model

COUNT = 3
BOTH = ("eval_cases", "baseline_report", "eval_report")
DECODING = Decoding(mode="free", max_new_tokens=10, batch_size=2, free_cases=0)


@dg.asset(name="eval_cases")
def cases_asset() -> pd.DataFrame:
    """Stands for the real one."""
    return cases_table(cases(COUNT))


@dg.asset(name="lora_adapter")
def adapter_asset() -> None:
    """Stands for the real one; the fixture made the adapter."""


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("base"), context=8192)


def make_adapter(base: Path, folder: Path, *, trained: bool = True, digest: str = "a" * 64) -> None:
    """A LoRA adapter with random weights on both sides, or as it is before training (one side zero)."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=not trained)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    files = {name: file_digest(folder / name) for name in (WEIGHTS, CONFIG)}
    write_manifest(
        folder, Manifest(sha256=digest, inputs={"base_model": base_model_digest(base)}, extra={"files": files})
    )


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    make_adapter(base_folder, folder)
    return folder


@pytest.fixture
def layout(tmp_path: Path, adapter: Path) -> Layout:
    layout = Layout(UPath(tmp_path))
    shutil.copytree(adapter, str(layout.adapter))
    return layout


def run(layout: Layout, base: Path, *selection: str, **settings: Any) -> Any:
    """Materialize with the checks; `settings` are resources in place of the default ones."""
    artifacts = Artifacts(root=str(layout.root))
    resources = {
        "artifacts": artifacts,
        "io_manager": JsonlIOManager(artifacts=artifacts),
        "base_model": BaseModel(profile="embedded", base_model=str(base)),
        "decoding": DECODING,
        "gate": GateProfile(),
        "prompt": PromptSettings(),
        "tracking": Tracking(),
    }
    return dg.materialize(
        [cases_asset, adapter_asset, baseline_report, eval_report, *evaluation_checks],
        selection=dg.AssetSelection.assets(*selection) if selection else None,
        resources=resources | settings,
        raise_on_error=False,
    )


def checks_of(result: Any) -> dict[str, Any]:
    return {check.check_name: check for check in result.get_asset_check_evaluations()}


def shown(result: Any) -> Any:
    """The metadata on the page of `eval_report`."""
    (event,) = result.asset_materializations_for_node("eval_report")
    return {name: value.value for name, value in event.metadata.items()}


def failure(layout: Layout, base: Path, *selection: str, **settings: Any) -> str:
    """What the failed step `eval_report` says."""
    failed = run(layout, base, *(selection or ["eval_report"]), **settings).get_step_failure_events()
    (data,) = [event.step_failure_data for event in failed if event.step_key == "eval_report"]
    return str(data.user_failure_data.description if data.user_failure_data else data.error)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, adapter: Path, base_folder: Path) -> tuple[Layout, Any]:
    """A place in which the adapter was evaluated, to be looked at and not changed, and the run."""
    layout = Layout(UPath(tmp_path_factory.mktemp("finished")))
    shutil.copytree(adapter, str(layout.adapter))
    return layout, run(layout, base_folder)


@pytest.fixture
def evaluated(finished: tuple[Layout, Any], tmp_path: Path) -> Layout:
    """A copy of it."""
    shutil.copytree(str(finished[0].root), tmp_path / "evaluated", symlinks=True)
    return Layout(UPath(tmp_path / "evaluated"))


def test_a_bad_student_fails_the_gate_and_everything_is_still_reported(finished: tuple[Layout, Any]) -> None:
    """Random weights: tables, report, record, card and failed checks with their numbers; no promotion."""
    layout, result = finished
    assert not result.success
    checks = checks_of(result)
    assert set(checks) == set(CRITERIA)
    assert not checks["case_count"].passed
    assert "3 cases were evaluated, 40 are wanted." in checks["case_count"].description
    assert not checks["valid_answers"].passed
    assert checks["valid_answers"].metadata["rows"].value.records[0].data["case"] == "EVAL-01"
    table = read_frame(layout.student_answers)
    assert table["case_id"].tolist() == ["EVAL-01", "EVAL-02", "EVAL-03"]
    assert set(table["finish_reason"]) <= {"stop", "length"}
    record = read_gate(gate_path(layout))
    assert (record.sha256, record.passed) == ("a" * 64, False)
    assert current_gate(layout) is None
    assert "The gate failed" in layout.report_html.read_text()
    assert json.loads(layout.report_json.read_text())["gate"]["passed"] is False
    card = (layout.adapter / "README.md").read_text()
    assert "The gate **failed** on " in card
    assert "| case_count |" in card


def test_the_metadata_shows_the_gate_the_pictures_and_the_report(finished: tuple[Layout, Any]) -> None:
    """What the asset's page in Dagster has."""
    metadata = shown(finished[1])
    assert next(iter(metadata)) == "verdict"
    assert metadata["verdict"].startswith("The student fails the gate (case_count, mean_score")
    assert "Mean score 0.016 over 3 cases (baseline 0.016)." in metadata["verdict"]
    criteria = metadata["criteria"].splitlines()
    assert criteria[:2] == [
        "- **FAIL** case_count: 3 (required = 40)",
        "- **FAIL** mean_score: 0.016 (required >= 0.82)",
    ]
    assert len(criteria) == len(CRITERIA)
    assert len(metadata["criteria"]) < 1_000  # the UI shows it where it stands
    wanted = {
        "report": "evaluation/po_eval_report.html",
        "gate": "failed (profile literal)",
        "promotion": f"Adapter {'a' * 12} is not promoted; no adapter is current yet.",
        "dagster/row_count": COUNT,
    }
    assert {name: metadata[name] for name in wanted} == wanted
    assert "| right statuses | 0 of 3 |" in metadata["judgement"]
    for picture in ("scores_by_case", "student_statuses", "baseline_statuses"):
        assert "data:image/png;base64," in metadata[picture]
    assert "| EVAL-01 |" in metadata["lowest_cases"]
    assert "| what cost points |" in metadata["lowest_cases"]


def test_the_student_is_the_adapter_and_not_the_base(finished: tuple[Layout, Any]) -> None:
    """Elsewhere an evaluation measured the base model twice."""
    layout, _ = finished
    student, baseline = read_frame(layout.student_answers), read_frame(layout.baseline_answers)
    assert (student["text"] != baseline["text"]).all()
    assert set(student["model_digest"]).isdisjoint(baseline["model_digest"])


def test_unchanged_nothing_is_generated_again(
    finished: tuple[Layout, Any], evaluated: Layout, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same data versions come out."""

    def never(*_arguments: object, **_options: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(answering, "load_base_model", never)
    second = run(evaluated, base_folder)
    for node in ("baseline_report", "eval_report"):
        versions = [
            run_.asset_materializations_for_node(node)[0].tags["dagster/data_version"] for run_ in (finished[1], second)
        ]
        assert versions[0] == versions[1]


def test_a_good_student_is_promoted(layout: Layout, base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 cases, good answers (a faked decode loop): every ERROR check passes and the adapter becomes current."""
    monkeypatch.setattr(f"{__name__}.COUNT", 40)
    tokens = load_tokenizer(base_folder)(GOOD)["input_ids"]

    def good(_model: Any, batch: Any, *_others: Any) -> Any:
        for request in batch:
            yield generate.Completion(request.key, tokens, "stop", 1.0)

    monkeypatch.setattr(generate, "complete_batch", good)
    result = run(layout, base_folder)
    assert result.success
    # every answer says aligned
    assert {name for name, check in checks_of(result).items() if not check.passed} == {"status_accuracy", "judges"}
    assert current_gate(layout).sha256 == "a" * 64
    assert shown(result)["promotion"] == f"Adapter {'a' * 12} is now models/current."
    # A changed profile is a new verdict, over the same answers: nothing is generated or loaded again.
    monkeypatch.setattr(answering, "load_base_model", None)
    strict = run(layout, base_folder, gate=GateProfile(name="reviewer"))
    assert not strict.success
    promotion = shown(strict)["promotion"]
    assert promotion.startswith(f"Adapter {'a' * 12} is models/current since an earlier gate (it passed last on ")
    assert "and fails now (judges; profile reviewer). It stays in use" in promotion
    # With one token a byte, its visions are longer than the grammar permits: what cannot be asked is said.
    assert shown(strict)["contrast"] == "No contrast case could be judged."
    record = read_gate(gate_path(layout))
    assert (record.context["profile"]["name"], list(record.failed)) == ("reviewer", ["judges"])


def test_the_student_is_asked_through_consumers_prompts_too(
    finished: tuple[Layout, Any], evaluated: Layout, base_folder: Path
) -> None:
    """By default the agent's, on all of so few cases; table and report show it, and nothing is asked twice."""
    assert "| agent | 3 | " in shown(finished[1])["consumer_prompts"]
    check = checks_of(finished[1])["consumer_prompts"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "Through the prompt agent the student scores" in check.description
    (row,) = json.loads(evaluated.report_json.read_text())["consumer_prompts"]
    assert (row["prompt"], row["cases"]) == ("agent", "3")
    cached = {path.name: path.read_bytes() for path in evaluated.answer_cache.iterdir()}
    assert run(evaluated, base_folder, "eval_report").get_asset_materialization_events()
    assert {path.name: path.read_bytes() for path in evaluated.answer_cache.iterdir()} == cached


def test_a_baseline_or_an_adapter_made_otherwise_is_refused(evaluated: Layout, base_folder: Path) -> None:
    """Every mismatch, by name, with the way out; nothing is evaluated that would be certified for another prompt."""
    text = failure(evaluated, base_folder, decoding=DECODING.with_values(max_new_tokens=11))
    assert "it was decoded with other settings than the student's (free, greedy, at most 11 new tokens" in text
    assert "Materialize baseline_report with the same settings, then eval_report again." in text
    agents = PromptSettings(template="agent", consumer_prompts=[])
    text = failure(evaluated, base_folder, prompt=agents)
    assert "it was asked under another prompt than the student is (agent)" in text
    text = failure(evaluated, base_folder, *BOTH, prompt=agents)
    assert "The adapter was trained under the prompt 'built-in'" in text
    assert "the one set now is 'agent'" in text


def test_an_adapter_is_not_evaluated_that_is_not_the_trained_one(
    evaluated: Layout, base_folder: Path, tmp_path: Path
) -> None:
    """Changed since it was published, trained on another base model of the same shapes, not trained, or not there.

    An adapter that changes nothing would measure the base model.
    """
    folder = Path(str(evaluated.adapter))
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    said = failure(evaluated, base_folder)
    assert f"the file {WEIGHTS} in '{evaluated.adapter}' was changed or damaged since it was published" in said
    assert "Materialize lora_adapter, then eval_report" in said
    make_adapter(base_folder, folder, trained=False, digest="c" * 64)
    assert "changes no weight of" in failure(evaluated, base_folder)
    other = make_tiny_model(tmp_path / "other", context=8192, seed=1)
    assert "was trained on another base model" in failure(evaluated, other, *BOTH)
    (folder / "manifest.json").unlink()
    assert "there is no finished adapter in" in failure(evaluated, other)


def test_what_was_evaluated_is_promoted_whatever_is_trained_meanwhile(
    evaluated: Layout, adapter: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its card; the gate is taken as passed here."""
    before = (evaluated.adapter / WEIGHTS).read_bytes()
    real = evaluate.judge

    def judge_while_training(*arguments: Any, **others: Any) -> Any:
        make_adapter(base_folder, Path(str(evaluated.adapter)), trained=False, digest="b" * 64)
        return replace(real(*arguments, **others), passed=True)

    monkeypatch.setattr(evaluate, "judge", judge_while_training)
    shutil.copy(adapter / "README.md", str(evaluated.adapter))  # a card without a verdict
    run(evaluated, base_folder, "eval_report")
    assert current_gate(evaluated).sha256 == "a" * 64
    assert (evaluated.current / WEIGHTS).read_bytes() == before
    assert "The gate **passed** on " in (evaluated.current / "README.md").read_text()
    assert "The gate" not in (evaluated.adapter / "README.md").read_text()


def test_the_student_is_also_asked_without_grammar(
    layout: Layout, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said in the metadata and the report, with the number of cases."""
    monkeypatch.setattr(f"{__name__}.COUNT", 2)
    monkeypatch.setattr(evaluate, "contrast_cases", lambda _cases: [])  # whose answers take longest
    decoding = Decoding(max_new_tokens=6000, batch_size=4, free_cases=2, free_max_new_tokens=8)
    result = run(layout, base_folder, decoding=decoding, prompt=PromptSettings(consumer_prompts=[]))
    expected = (
        "Without grammar 0 of 2 answers are valid (mean score 0.016, 2 cut at the token limit), measured on 2 cases."
    )
    assert shown(result)["without_grammar"] == expected
    assert expected in layout.report_html.read_text()
    assert read_frame(layout.student_answers)["valid"].dtype == bool


def test_free_cases_are_spread_over_all() -> None:
    """And no more than there are."""
    assert [case.case_id for case in spread(cases(40), 4)] == ["EVAL-01", "EVAL-11", "EVAL-21", "EVAL-31"]
    assert spread(cases(3), 8) == cases(3)
