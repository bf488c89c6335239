"""The assets of evaluation: `baseline_report` (once per base model) and `eval_report` (per adapter).

Thin: they read, call the plain functions of this package, and show. Their checks are in `checks`.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg
import pandas as pd
from upath import UPath

from po_assets.dag import Artifacts, column_schema, figure_picture, records_table, stage_frames
from po_assets.dag.compute import CRASH_RETRY, GPU_STEP, POOL
from po_assets.evaluation.settings import ENGINE_VERSION, DecodingSettings
from po_assets.model import BaseModel
from po_assets.product_owner import METRIC_VERSION, PROMPT_VERSION
from po_assets.storage import atomic_file, digest_of, file_digest, read_manifest

if TYPE_CHECKING:
    from po_assets.evaluation.scoring import ScoredAnswer
    from po_assets.evaluation.student_evaluation import Evaluation

CODE_VERSION = f"1+engine.{ENGINE_VERSION}+metric.{METRIC_VERSION}+prompt.{PROMPT_VERSION}"

GROUP = "evaluation"
OWNERS = ["team:po-distillation"]
KINDS = {"python", "pytorch", "huggingface"}
_COLUMNS = column_schema(
    {
        "case_id": ("string", "The evaluation case."),
        "model": ("string", "baseline or student."),
        "tier": ("string", "simple, medium or corporate."),
        "text": ("string", "The answer as it came out."),
        "finish_reason": ("string", "stop, length (cut at the token limit) or missing."),
        "tokens": ("int", "Tokens of the answer."),
        "seconds": ("float", "Computing time of the answer."),
        "attempts": ("int", "How often it was asked for."),
        "total": ("float", "Score, 0 to 1."),
        "schema": ("float", "Points for the form, at most 30."),
        "vision": ("float", "Points for the vision's completeness, at most 30."),
        "alignment": ("float", "Points for the requirements covered, at most 30."),
        "specificity": ("float", "Points for the review's specificity, at most 30."),
        "problems": ("list[string]", "What cost points, most costly first."),
        "valid": ("bool", "Whether the answer passes the validator."),
        "invalid_reason": ("string", "The first reason why not."),
        "status": ("string", "The status in the answer."),
        "reference_status": ("string", "The right status."),
        "unknown_ids": ("list[string]", "Cited requirement ids that the case does not have."),
        "invented_conflicts": ("int", "Conflicts listed where the reference lists none."),
        "decoding": ("string", "Digest of the decoding settings."),
        "model_digest": ("string", "Digest of the weights that answered."),
        "metric_version": ("string", "Version of the metric."),
    }
)


@dg.asset(
    group_name=GROUP,
    owners=OWNERS,
    kinds=KINDS,
    pool=POOL,
    op_tags={**GPU_STEP, "dagster/priority": "-1"},  # a bad landing is told of before it; it takes minutes
    retry_policy=CRASH_RETRY,
    code_version=CODE_VERSION,
    metadata={"dagster/column_schema": _COLUMNS},
    description="One row per evaluation case: the untrained base model's answer and its score. The student is compared "
    "with it under the same prompt and decoding. Answers given before come from a cache.",
)
def baseline_report(
    context: dg.AssetExecutionContext,
    eval_cases: pd.DataFrame,
    artifacts: Artifacts,
    base_model: BaseModel,
    decoding: DecodingSettings,
) -> dg.MaterializeResult[Any]:
    """Answer all cases with the base model."""
    from po_assets.evaluation.cases import cases_from_frame
    from po_assets.evaluation.report import answers_summary
    from po_assets.evaluation.student_evaluation import answer_with_baseline

    layout = artifacts.layout
    with _refusing():
        settings, spec = decoding.decoding(), base_model.resolved()
        scored = answer_with_baseline(cases_from_frame(eval_cases), layout, spec, settings, context.log.info)
    summary = answers_summary(scored, spec.name, settings)
    with atomic_file(layout.baseline_report) as file:
        file.write(json.dumps(summary, indent=1).encode())
    return _answers_result(
        scored,
        layout.baseline_answers,
        inputs={"eval_cases": file_digest(layout.eval_cases), "base_model": scored[0].model_digest},
        config=settings.digest,
        metadata={
            "model": spec.name,
            "decoding": settings.described(),
            "report": dg.MetadataValue.path(str(layout.baseline_report)),
        },
    )


@dg.asset(
    group_name=GROUP,
    owners=OWNERS,
    kinds=KINDS,
    pool=POOL,
    op_tags=GPU_STEP,
    retry_policy=CRASH_RETRY,
    code_version=CODE_VERSION,
    deps=["lora_adapter"],
    metadata={"dagster/column_schema": _COLUMNS},
    description="One row per evaluation case: the student's answer and its score, with the gate that decides whether "
    "the adapter becomes models/current, and a report for people (HTML and JSON). The thresholds are its checks.",
)
def eval_report(  # noqa: PLR0917 - Dagster passes by name
    context: dg.AssetExecutionContext,
    eval_cases: pd.DataFrame,
    baseline_report: pd.DataFrame,
    artifacts: Artifacts,
    base_model: BaseModel,
    decoding: DecodingSettings,
) -> dg.MaterializeResult[Any]:
    """Answer all cases with the student, compare it with the baseline, gate it, report it, promote it."""
    from po_assets.evaluation.cases import cases_from_frame
    from po_assets.evaluation.student_evaluation import evaluate_student

    layout = artifacts.layout
    with _refusing():
        settings = decoding.decoding()
        evaluation = evaluate_student(
            cases_from_frame(eval_cases),
            baseline_report,
            layout,
            base_model.resolved(),
            decoding,
            log=context.log.info,
        )
    baseline_manifest = read_manifest(layout.baseline_answers)
    return _answers_result(
        evaluation.student,
        layout.student_answers,
        inputs={
            "eval_cases": file_digest(layout.eval_cases),
            "baseline_report": baseline_manifest.sha256 if baseline_manifest else "",
            "lora_adapter": evaluation.record.adapter_sha256,
        },
        config=digest_of([settings.digest, decoding.free_decoding().digest, decoding.free_cases]),
        metadata=_report_metadata(evaluation, layout.report_html, layout.report_json),
    )


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """What cannot work however often it is tried (wrong settings, no such model) fails once, with its sentence."""
    try:
        yield
    except ValueError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error


def _answers_result(
    scored: Sequence["ScoredAnswer"],
    path: UPath,
    *,
    inputs: dict[str, str],
    config: str,
    metadata: Mapping[str, Any],
) -> dg.MaterializeResult[Any]:
    from po_assets.evaluation.scoring import answers_frame
    from po_assets.evaluation.statistics import summarize

    staged = stage_frames(path, [answers_frame(scored)])
    summary = summarize(scored)
    lowest = sorted(scored, key=lambda answer: answer.total)
    return dg.MaterializeResult(
        value=staged.with_manifest(inputs=inputs, config=config, code_version=CODE_VERSION),
        data_version=dg.DataVersion(staged.sha256),
        metadata={
            **metadata,
            "dagster/row_count": staged.rows,
            "mean_score": summary.mean,
            "score_std": summary.std,
            "valid_share": summary.valid_share,
            "status_accuracy": summary.status_accuracy,
            "macro_f1": summary.macro_f1,
            "tokens_per_second": summary.tokens_per_second,
            "lowest_cases": records_table(
                [
                    {
                        "case": a.case_id,
                        "tier": a.tier,
                        "score": a.total,
                        "valid": a.valid,
                        "status": a.status or "none",
                        "right status": a.reference_status,
                        "what cost points": "; ".join(a.problems[:2]) or "nothing",
                    }
                    for a in lowest
                ]
            ),
        },
    )


def _report_metadata(evaluation: "Evaluation", html: UPath, report: UPath) -> dict[str, Any]:
    free = evaluation.free
    return {
        # A path with a copy button: browsers refuse to follow a link from the UI to a file.
        "report": dg.MetadataValue.path(str(html)),
        "report_json": dg.MetadataValue.path(str(report)),
        "gate": "passed" if evaluation.record.passed else "failed",
        "gate_table": records_table(
            [
                {  # the page cuts wide tables on the right: what counts stands on the left
                    "threshold": row.name,
                    "verdict": "pass" if row.passed else ("FAIL" if row.severity == "ERROR" else "warning"),
                    "value": row.value,
                    "required": row.required,
                }
                for row in evaluation.record.rows
            ]
        ),
        "promotion": evaluation.promotion,
        "decoding": evaluation.record.decoding,
        "without_grammar": free.described if free else "The student was not asked without grammar.",
        **{_key(name): figure_picture(figure, name) for name, figure in evaluation.figures().items()},
    }


def _key(title: str) -> str:
    return title.lower().replace("'s", "").replace(" ", "_")
