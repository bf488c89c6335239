"""The code location: every asset, check, job, sensor, schedule and resource in one explicit Definitions."""

import dagster as dg

from po_assets.automation.console import console
from po_assets.automation.jobs import main_job
from po_assets.automation.schedules import nightly_catch_up
from po_assets.automation.sensors import new_teacher_data, teacher_files
from po_assets.base_model import BaseModel
from po_assets.dataset.assets import eval_cases, supervised_dataset
from po_assets.dataset.checks import dataset_checks
from po_assets.dataset.policy import SelectionPolicy
from po_assets.evaluation.assets import baseline_report, eval_report
from po_assets.evaluation.checks import evaluation_checks
from po_assets.evaluation.settings import DecodingSettings
from po_assets.storage import Artifacts, JsonlIOManager
from po_assets.student.assets import lora_adapter
from po_assets.student.checks import student_checks
from po_assets.student.recipe import StudentRecipe
from po_assets.teacher.assets import normalized_teacher, raw_teacher
from po_assets.teacher.checks import teacher_checks

artifacts = Artifacts.configure_at_launch()
base_model = BaseModel.configure_at_launch()

defs = dg.Definitions(
    assets=[
        teacher_files,
        raw_teacher,
        normalized_teacher,
        eval_cases,
        supervised_dataset,
        lora_adapter,
        baseline_report,
        eval_report,
    ],
    asset_checks=[*teacher_checks, *dataset_checks, *student_checks, *evaluation_checks],
    jobs=[main_job],
    sensors=[new_teacher_data],
    schedules=[nightly_catch_up],
    resources={
        "artifacts": artifacts,
        "io_manager": JsonlIOManager(artifacts=artifacts),
        "base_model": base_model,
        "selection": SelectionPolicy.configure_at_launch(),
        "recipe": StudentRecipe.configure_at_launch(base_model=base_model),
        "decoding": DecodingSettings.configure_at_launch(),
    },
    # One process per run: the steps of one machine wait for each other anyway, and each would import torch anew.
    executor=dg.in_process_executor,
    loggers={"console": console},
)
