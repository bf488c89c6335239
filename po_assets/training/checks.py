"""The checks of `lora_adapter`: loads, changes_the_model, training_is_sane. One step, one process, one loaded model.

Thin: the verdicts are in `verdicts`.
"""

from collections.abc import Iterator

import dagster as dg

from po_assets.dag import Artifacts, to_check_result
from po_assets.dag.compute import CRASH_RETRY, GPU_STEP, POOL
from po_assets.errors import UserError
from po_assets.training.assets import lora_adapter
from po_assets.training.recipe import StudentRecipe

_SPECS = {
    "loads": "The adapter folder is whole and loads onto the base model with PEFT; every number in it is finite.",
    "changes_the_model": "With the adapter the model predicts differently than without it: it was trained and is in "
    "effect.",
    "training_is_sane": "Every loss is finite and the loss fell; exactly the answers and their end-of-sequence tokens "
    "were trained.",
}


@dg.multi_asset_check(
    name="lora_adapter_checks",
    specs=[
        dg.AssetCheckSpec(name, asset=lora_adapter, blocking=True, description=text) for name, text in _SPECS.items()
    ],
    can_subset=True,
    pool=POOL,
    op_tags=GPU_STEP,
    retry_policy=CRASH_RETRY,
)
def lora_adapter_checks(
    context: dg.AssetCheckExecutionContext, artifacts: Artifacts, recipe: StudentRecipe
) -> Iterator[dg.AssetCheckResult]:
    """Check the published adapter and the rows it was trained on."""
    from po_assets.training.verdicts import StudentUnderTest

    try:
        student = StudentUnderTest(artifacts.layout, recipe.resolved())
    except UserError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error
    selected = {key.name for key in context.selected_asset_check_keys}
    for name in _SPECS:
        if name in selected:
            yield to_check_result(name, "lora_adapter", getattr(student, name)())


student_checks: list[dg.AssetChecksDefinition] = [lora_adapter_checks]
