"""The code location: every asset, check, job, sensor, schedule and resource in one explicit Definitions."""

import os
from typing import Any

import dagster as dg

from po_assets.automation.catch_up import nightly_catch_up, with_settings_versions
from po_assets.automation.executors import orphaned_runs, step_executor
from po_assets.automation.jobs import ask_teacher, candidates_for_people, conflicts_on_demand, export_student, main_job
from po_assets.automation.landing import new_teacher_data, teacher_files
from po_assets.automation.notifications import failure_messages
from po_assets.automation.preflight import eval_cases_preflight
from po_assets.automation.project import SETTINGS_VARIABLE, read_settings
from po_assets.automation.run_summary import console
from po_assets.dag import Artifacts, JsonlIOManager, Settings, Tracking
from po_assets.dataset.assets import eval_cases, supervised_dataset
from po_assets.dataset.checks import dataset_checks
from po_assets.dataset.settings import PromptSettings, SelectionSettings
from po_assets.evaluation.assets import baseline_report, eval_report
from po_assets.evaluation.checks import evaluation_checks
from po_assets.evaluation.settings import Decoding, GateProfile
from po_assets.intake.assets import normalized_teacher, raw_teacher
from po_assets.intake.checks import teacher_checks
from po_assets.model import BaseModel
from po_assets.review.assets import review_candidates, synthetic_conflicts
from po_assets.review.checks import synthetic_conflicts_checks
from po_assets.review.settings import ReviewSettings
from po_assets.serving.assets import ExportSettings, exported_student, exported_student_checks
from po_assets.teacher.assets import teacher_batch, teacher_batch_checks
from po_assets.teacher.settings import BatchPlan, TeacherLLM
from po_assets.training.assets import lora_adapter
from po_assets.training.checks import lora_adapter_checks
from po_assets.training.settings import TrainingSettings, shown_defaults

SETTINGS: dict[str, type[Settings]] = {
    "base_model": BaseModel,
    "selection": SelectionSettings,
    "prompt": PromptSettings,
    "recipe": TrainingSettings,
    "decoding": Decoding,
    "gate": GateProfile,
    "export": ExportSettings,
    "curation": ReviewSettings,
    "teacher_llm": TeacherLLM,
    "batch_plan": BatchPlan,
    "tracking": Tracking,
}
"""The resources that hold settings. A file named by PO_SETTINGS changes their defaults, the Launchpad one run's."""

given = read_settings(os.environ.get(SETTINGS_VARIABLE), SETTINGS)
artifacts = Artifacts.configure_at_launch()
defaults: dict[str, Any] = {
    name: SETTINGS[name](**given[name]) for name in ("base_model", "selection", "prompt", "decoding", "gate")
}
defaults["recipe"] = TrainingSettings(base_model=defaults["base_model"], **given["recipe"])
# The Launchpad shows the profile, and the values that it brings; a wrong one fails a run, not the code location.
profile = defaults["base_model"].profile
shown_model = ({"profile": profile} if shown_defaults(profile) else {}) | given["base_model"]
shown_recipe = shown_defaults(profile) | given["recipe"]
base_model = BaseModel.configure_at_launch(**shown_model)

defs = dg.Definitions(
    assets=[
        teacher_files,
        teacher_batch,
        synthetic_conflicts,
        review_candidates,
        exported_student,
        *with_settings_versions(
            [
                raw_teacher,
                normalized_teacher,
                eval_cases,
                supervised_dataset,
                lora_adapter,
                baseline_report,
                eval_report,
            ],
            defaults,
        ),
    ],
    asset_checks=[
        *teacher_checks,
        eval_cases_preflight,
        *dataset_checks,
        lora_adapter_checks,
        *evaluation_checks,
        exported_student_checks,
        synthetic_conflicts_checks,
        teacher_batch_checks,
    ],
    jobs=[main_job, ask_teacher, conflicts_on_demand, candidates_for_people, export_student],
    sensors=[new_teacher_data, orphaned_runs, failure_messages],
    schedules=[nightly_catch_up],
    resources={
        **{name: kind.configure_at_launch(**given[name]) for name, kind in SETTINGS.items() if name != "recipe"},
        "artifacts": artifacts,
        "io_manager": JsonlIOManager(artifacts=artifacts),
        "base_model": base_model,
        "recipe": TrainingSettings.configure_at_launch(base_model=base_model, **shown_recipe),
    },
    executor=step_executor(),
    loggers={"console": console},
)
