"""The check `preflight`: what can be known from settings, cases and machine is judged before the first model step.

Everything that computes with the model is below `eval_cases`, so that a blocking check there stops it. What the rows
decide (too long, too few) belongs to the checks of `supervised_dataset`.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field

import psutil

from po_assets.dag import Artifacts, AssetChecks, Verdict
from po_assets.dag.compute import EXECUTOR_VARIABLE
from po_assets.dataset.cases import EvalCase, read_eval_cases
from po_assets.dataset.settings import PromptSettings
from po_assets.errors import UserError
from po_assets.evaluation.answers import context_of, decoding_faults
from po_assets.evaluation.settings import Decoding, GateProfile
from po_assets.model import BaseModel, ChatTemplate, ensure_tokenizer, load_tokenizer, require_hardware
from po_assets.storage import Layout, is_local
from po_assets.text import amount
from po_assets.training.rows import mix_fault
from po_assets.training.settings import TrainingSettings

# Measured on the sample data, with room to spare: converted model, three adapters, a checkpoint; the training's peak.
_DISK_BYTES = {"embedded": 1_000_000_000, "paper": 5_000_000_000}
_MEMORY_BYTES = {"embedded": 3_000_000_000, "paper": 12_000_000_000}


@dataclass(frozen=True)
class Plan:
    """What a run is going to do, and with what."""

    layout: Layout
    cases: list[EvalCase]
    base_model: BaseModel
    recipe: TrainingSettings
    decoding: Decoding
    gate: GateProfile
    prompt: PromptSettings = field(default_factory=PromptSettings)


checks = AssetChecks[Plan]("eval_cases")


@checks.register(blocking=True)
def preflight(plan: Plan) -> Verdict:
    """Settings, cases and machine allow what is to be done: nothing is trained that could not be evaluated."""
    faults, warnings = _faults(plan), _warnings(plan)
    rows = [{"severity": "ERROR", "fault": fault} for fault in faults]
    rows += [{"severity": "WARN", "fault": warning} for warning in warnings]
    if not rows:
        return Verdict(True, f"{amount(len(plan.cases), 'case')}, settings and machine fit what is to be done.")
    return Verdict(
        False,
        " ".join([*faults, *warnings]),
        "Correct the settings (in the Launchpad, or in the file that PO_SETTINGS names), the cases or the machine, "
        "then materialize eval_cases again with what is below it."
        if faults
        else "Nothing is stopped by this; but the gate will fail, or the run may.",
        rows=rows,
        severity="ERROR" if faults else "WARN",
    )


def _faults(plan: Plan) -> list[str]:
    """Why the run cannot come to a verdict, in sentences with the way out."""
    faults: list[str] = []
    with _collected(faults):
        plan.recipe.resolved()
    if fault := mix_fault(plan.recipe.prompt_mix, plan.prompt.consumers):
        faults.append(fault)
    with _collected(faults):
        spec = plan.base_model.resolved()
        if _work_is_done_here():
            require_hardware(spec)
        folder = ensure_tokenizer(spec, plan.layout)
        context = context_of(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        chat = ChatTemplate(load_tokenizer(folder))
        faults += decoding_faults(plan.cases, plan.decoding, chat=chat, context=context)
    if _work_is_done_here() and is_local(plan.layout.root):
        free, needed = shutil.disk_usage(str(plan.layout.root)).free, _DISK_BYTES.get(plan.base_model.profile, 0)
        if free < needed:
            faults.append(
                f"The disk of {plan.layout.root} has {free / 1e9:.1f} GB free, and up to {needed / 1e9:.0f} GB are "
                "needed: make room, or set PO_ARTIFACTS_ROOT to another disk."
            )
    return faults


def _warnings(plan: Plan) -> list[str]:
    """What makes a passed gate impossible, or the run unsafe."""
    warnings = []
    found, exact, least = len(plan.cases), plan.gate.case_count, plan.gate.minimum_cases
    if found != exact if exact is not None else found < least:
        wanted = f"at least {least}" if exact is None else f"{exact}"
        warnings.append(
            f"There are {amount(found, 'case')}, and the gate {plan.gate.name!r} wants {wanted}: it will fail. Add "
            "cases, or give the gate a profile of your own (resource `gate`: name, case_count)."
        )
    memory, needed = psutil.virtual_memory().total, _MEMORY_BYTES.get(plan.base_model.profile, 0)
    if _work_is_done_here() and memory < needed:
        warnings.append(
            f"This machine has {memory / 1e9:.1f} GB of memory, and training takes up to {needed / 1e9:.0f} GB: it may "
            "be ended by the system."
        )
    return warnings


def _work_is_done_here() -> bool:
    """Whether training and evaluation run on this machine; Ray and Kubernetes place them on others."""
    return os.environ.get(EXECUTOR_VARIABLE, "") in {"", "in_process"}


@contextlib.contextmanager
def _collected(faults: list[str]) -> Iterator[None]:
    """A `UserError` in the block is one more fault."""
    try:
        yield
    except UserError as error:
        faults.append(str(error))


@checks.step
def eval_cases_preflight(  # noqa: PLR0917 - resources, by name
    artifacts: Artifacts,
    base_model: BaseModel,
    recipe: TrainingSettings,
    decoding: Decoding,
    gate: GateProfile,
    prompt: PromptSettings,
) -> Plan:
    """Settings, cases and machine."""
    cases = read_eval_cases(artifacts.layout.eval_cases, prompt.own)
    return Plan(artifacts.layout, cases, base_model, recipe, decoding, gate, prompt)
