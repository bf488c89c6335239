"""The asset `exported_student`, its settings and its check: forms are written by `export`, judged by `parity`."""

from typing import Any, ClassVar, cast

import dagster as dg
from pydantic import Field, field_validator

from po_assets.dag import Artifacts, Settings, page_table, place, user_errors_fail_the_step
from po_assets.dag.compute import CRASH_RETRY, GPU_STEP, POOL
from po_assets.intake.assets import OWNERS
from po_assets.model import BaseModel
from po_assets.product_owner import PROMPT_VERSION
from po_assets.serving.export import DEFAULT_FORMS, FORMS, Form, export_student
from po_assets.serving.parity import FEWEST_CASES, Exported, exported_checks, keep_verdict
from po_assets.storage import digest_of


class ExportSettings(Settings):
    """Which forms of the student the asset exported_student writes, and how they are compared with the adapter."""

    noun: ClassVar[str] = "the export"

    forms: list[str] = Field(default=list(DEFAULT_FORMS), min_length=1)
    """`safetensors` (merged, for vLLM), and the GGUF files `f16`, `q8_0` and `q4_0` (llama.cpp)."""
    cases: int = Field(default=10, ge=FEWEST_CASES)
    """Evaluation cases that the check export_parity asks of each form; more resolve smaller damage."""

    @field_validator("forms")
    @classmethod
    def _are_known(cls, forms: list[str]) -> list[str]:
        if unknown := [form for form in forms if form not in FORMS]:
            raise ValueError(f"forms names {', '.join(map(repr, unknown))}; known are {', '.join(FORMS)}.")
        return forms


@dg.asset(
    deps=["eval_report"],
    group_name="serving",
    owners=OWNERS,
    kinds={"python", "pytorch", "huggingface"},
    code_version=f"1+prompt.{PROMPT_VERSION}",
    description="The current student (models/current) for other runtimes, in models/exported: merged safetensors, GGUF "
    "files, an Ollama Modelfile, card and prompt. Not part of the main job: the job export_student makes it.",
)
@user_errors_fail_the_step()
def exported_student(
    context: dg.AssetExecutionContext, artifacts: Artifacts, base_model: BaseModel, export: ExportSettings
) -> dg.MaterializeResult[Any]:
    """Write the forms that the settings name."""
    layout = artifacts.layout
    forms = cast("list[Form]", export.forms)
    record = export_student(layout, layout.exported, spec=base_model, forms=forms, say=context.log.info)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(digest_of(record)),
        metadata={
            "path": place(layout.exported),
            "adapter": record["adapter_digest"][:12],
            "files": page_table([{"file": name, "sha256": digest} for name, digest in record["files"].items()]),
        },
    )


@exported_checks.step(complete=keep_verdict, pool=POOL, op_tags=GPU_STEP, retry_policy=CRASH_RETRY)  # type: ignore[untyped-decorator]
def exported_student_checks(artifacts: Artifacts, base_model: BaseModel, export: ExportSettings) -> Exported:
    """Ask adapter and forms the same cases."""
    layout = artifacts.layout
    return Exported(layout, layout.exported, base_model.resolved(), export.cases)
