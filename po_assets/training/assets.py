"""The asset `lora_adapter`. Thin: the work is in `student`, the settings are in `settings`, the checks in `checks`."""

from typing import TYPE_CHECKING, Any

import dagster as dg
import pandas as pd

from po_assets.dag import (
    Artifacts,
    Tracking,
    line_chart,
    place,
    rounded,
    short,
    user_errors_fail_the_step,
)
from po_assets.dag.compute import CRASH_RETRY, POOL, TRAINING_STEP
from po_assets.dataset.settings import PromptSettings
from po_assets.intake.assets import OWNERS
from po_assets.product_owner import PROMPT_VERSION
from po_assets.text import Progress, amount
from po_assets.training.rows import Prompts
from po_assets.training.settings import TrainingSettings

if TYPE_CHECKING:
    from po_assets.training.student import Student

GROUP = "student"
CODE_VERSION = f"1+prompt.{PROMPT_VERSION}"


@dg.asset(
    group_name=GROUP,
    owners=OWNERS,
    kinds={"python", "pytorch", "huggingface"},
    pool=POOL,
    op_tags=TRAINING_STEP,
    retry_policy=CRASH_RETRY,
    code_version=CODE_VERSION,
    description="The student: a LoRA adapter (a PEFT folder) that the base model is fine-tuned with on the supervised "
    "rows. Refuses data whose checks did not pass, resumes an interrupted training, and does not train again when "
    "data, recipe and base model are unchanged.",
)
@user_errors_fail_the_step()
def lora_adapter(  # noqa: PLR0917 - resources, by name
    context: dg.AssetExecutionContext,
    supervised_dataset: pd.DataFrame,
    artifacts: Artifacts,
    recipe: TrainingSettings,
    prompt: PromptSettings,
    tracking: Tracking,
) -> dg.MaterializeResult[Any]:
    """Train and publish the adapter."""
    from po_assets.training.student import make_student

    recipe = recipe.resolved()
    pairs: list[tuple[str, str]] = []
    if not supervised_dataset.empty:
        pairs = list(supervised_dataset[["prompt", "response"]].itertuples(index=False, name=None))
    with tracking.run(context, recipe.effective()) as tracked:

        def observe(numbers: dict[str, float]) -> None:
            # Plotted by the UI while the asset is still being made.
            context.log_event(dg.AssetObservation(asset_key=context.asset_key, metadata=numbers))
            tracked.metrics([(int(numbers["train/step"]), numbers)])

        progress = Progress(context.log.info, observe)
        student = make_student(artifacts.layout, pairs, recipe, progress, Prompts(prompt.own, prompt.consumers))
        metadata = _metadata(student)
        if not student.unchanged:
            tracked.metrics([(record.step, record.numbers) for record in student.log])
            tracked.result(metadata)
    return dg.MaterializeResult(data_version=dg.DataVersion(student.manifest.sha256), metadata=rounded(metadata))


def _metadata(student: "Student") -> dict[str, Any]:
    extra, log = student.manifest.extra, student.log
    steps = [record.step for record in log]
    # A step's own loss jumps with its rows; the running mean shows where it goes.
    window = max(1, len(log) // 10)
    mean = [sum(r.loss for r in log[max(0, i - window + 1) : i + 1]) / min(window, i + 1) for i in range(len(log))]
    curves = {"loss of the step": (steps, [r.loss for r in log]), f"mean of {window} steps": (steps, mean)}
    if measured := {r.step: r.validation_loss for r in log if r.validation_loss is not None}:
        curves["validation loss"] = (list(measured), list(measured.values()))
    used, rows = extra.get("rows_used"), student.manifest.rows or 0
    return {
        "trained": f"{amount(extra['steps'], 'step')} on {f'{used:,} of ' if used else ''}{amount(rows, 'row')}",
        "loss_curve": line_chart(curves, "Loss per trained token", "optimizer step", "nats"),
        "unchanged": student.unchanged,
        "path": place(student.folder),
        "prompt": extra.get("prompt", {}).get("name", ""),
        "prompt_mix": extra.get("prompt_mix") or "All rows are trained under the own prompt.",
        "computation": extra["engine"],
        "resumed_at_step": extra["resumed_at"],
        "training_seconds": extra["seconds"],
        "base_model": short(extra["base_model"]),
        **{name: extra[name] for name in ("precision", "steps", "first_loss", "last_loss", "tokens")},
        "tokens_per_second": extra["tokens"] / extra["seconds"] if extra["seconds"] else 0.0,
        "peak_memory_gib": max(record.memory_gib for record in log),
        "trainable_parameters": extra["trainable_parameters"],
        **{name: extra[name] for name in ("validation_rows", "validation_loss", "published_step") if name in extra},
        "recipe_digest": student.manifest.config[:12],
        "supervised_sha256": student.manifest.inputs["supervised_dataset"][:12],
    }
