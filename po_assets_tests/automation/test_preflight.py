"""What can be known is judged before the first model step."""

import dataclasses
import shutil
from collections import namedtuple
from typing import Any

import pytest
from upath import UPath

from po_assets.automation import preflight
from po_assets.automation.preflight import Plan
from po_assets.dag import Verdict
from po_assets.dataset.settings import PromptSettings
from po_assets.evaluation.settings import Decoding, GateProfile
from po_assets.model import BaseModel
from po_assets.storage import Layout
from po_assets.training.settings import TrainingSettings
from po_assets_tests.evaluation.scenes import cases
from po_assets_tests.model.tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """One that fits: three cases, of which the gate wants three."""
    folder = tmp_path_factory.mktemp("plan")
    base_model = BaseModel(base_model=str(make_tiny_model(folder / "tiny", context=12000)))
    recipe = TrainingSettings(base_model=base_model)
    return Plan(
        Layout(UPath(folder)), cases(3), base_model, recipe, Decoding(), GateProfile(name="three", case_count=3)
    )


def judged(plan: Plan, **changes: Any) -> Verdict:
    verdicts = preflight.checks.verdicts(dataclasses.replace(plan, **changes))
    return verdicts["preflight"]


def test_a_plan_that_fits_passes(plan: Plan) -> None:
    """And says what was looked at."""
    verdict = judged(plan)
    assert verdict.passed, verdict.summary
    assert verdict.summary == "3 cases, settings and machine fit what is to be done."


def test_answers_that_would_be_cut_are_refused(plan: Plan) -> None:
    """The sentence of the evaluation, before anything is trained."""
    verdict = judged(plan, decoding=Decoding(max_new_tokens=8))
    assert (verdict.passed, verdict.severity) == (False, "ERROR")
    assert "max_new_tokens is 8, but the grammar allows answers of up to" in verdict.summary


def test_a_mix_of_prompts_that_cannot_be_had_is_refused(plan: Plan) -> None:
    """Before anything is trained."""
    recipe = TrainingSettings(base_model=plan.base_model, prompt_mix=0.5)
    assert judged(plan, recipe=recipe).passed
    verdict = judged(plan, recipe=recipe, prompt=PromptSettings(consumer_prompts=[]))
    assert (verdict.passed, verdict.severity) == (False, "ERROR")
    assert "prompt_mix is 0.5, and no other prompt is named" in verdict.summary


def test_all_faults_are_told_at_once(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base model that is not there, and a full disk."""
    usage = namedtuple("usage", "total used free")  # noqa: PYI024 - as shutil has it
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10**9, 10**9, 10**6))
    missing = BaseModel(base_model="/nowhere/model")
    verdict = judged(plan, base_model=missing)
    assert verdict.severity == "ERROR"
    assert "The base model '/nowhere/model' is neither a folder on this machine nor a Hub id" in verdict.summary
    assert "GB free, and up to 1 GB are needed" in verdict.summary
    assert len(verdict.rows) == 2


def test_what_the_profile_demands_is_looked_for(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU, where the work is done on this machine; on Ray and Kubernetes others have it."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    model = BaseModel(profile="paper", base_model=plan.base_model.base_model, quantization="none")
    assert "needs a CUDA GPU" in judged(plan, base_model=model).summary
    monkeypatch.setenv("PO_EXECUTOR", "ray")
    assert judged(plan, base_model=model).passed


def test_a_number_of_cases_that_the_gate_will_refuse_is_warned_of(plan: Plan) -> None:
    """Nothing is stopped: a student of other cases may be wanted all the same."""
    verdict = judged(plan, gate=GateProfile())
    assert (verdict.passed, verdict.severity) == (False, "WARN")
    assert "There are 3 cases, and the gate 'literal' wants 40: it will fail." in verdict.summary
