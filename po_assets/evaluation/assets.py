"""The assets of evaluation: `baseline_report` (once per base model) and `eval_report` (per adapter).

Thin: they read, call the plain functions of this package, and show. Their checks are in `checks`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
from upath import UPath

from po_assets.dag import (
    Artifacts,
    column_schema,
    figure_picture,
    records_table,
    stage_frames,
    user_errors_fail_the_step,
)
from po_assets.dag.compute import CRASH_RETRY, GPU_STEP, POOL
from po_assets.dataset.cases import read_eval_cases
from po_assets.evaluation.evaluate import Evaluation, answer_with_baseline, evaluate_student
from po_assets.evaluation.gate import verdict_rows
from po_assets.evaluation.report import answers_summary, evaluation_figures
from po_assets.evaluation.scoring import ScoredAnswer, answers_frame
from po_assets.evaluation.settings import ENGINE_VERSION, Decoding
from po_assets.evaluation.statistics import summarize
from po_assets.model import BaseModel
from po_assets.product_owner import METRIC_VERSION, PROMPT_VERSION
from po_assets.storage import atomic_file, file_digest, read_manifest

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
    deps=["eval_cases"],
    metadata={"dagster/column_schema": _COLUMNS},
    description="One row per evaluation case: the untrained base model's answer and its score. The student is compared "
    "with it under the same prompt and decoding. Answers given before come from a cache.",
)
@user_errors_fail_the_step()
def baseline_report(
    context: dg.AssetExecutionContext, artifacts: Artifacts, base_model: BaseModel, decoding: Decoding
) -> dg.MaterializeResult[Any]:
    """Answer all cases with the base model."""
    layout, spec = artifacts.layout, base_model.resolved()
    scored = answer_with_baseline(read_eval_cases(layout.eval_cases), layout, spec, decoding, context.log.info)
    summary = answers_summary(scored, spec.name, decoding)
    with atomic_file(layout.baseline_report) as file:
        file.write(json.dumps(summary, indent=1).encode())
    return _answers_result(
        scored,
        layout.baseline_answers,
        inputs={"eval_cases": file_digest(layout.eval_cases), "base_model": scored[0].model_digest},
        config=decoding.fingerprint(),
        metadata={
            "model": spec.name,
            "decoding": decoding.described(),
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
    deps=["eval_cases", "baseline_report", "lora_adapter"],
    metadata={"dagster/column_schema": _COLUMNS},
    description="One row per evaluation case: the student's answer and its score, with the gate that decides whether "
    "the adapter becomes models/current, and a report for people (HTML and JSON). The thresholds are its checks.",
)
@user_errors_fail_the_step()
def eval_report(
    context: dg.AssetExecutionContext, artifacts: Artifacts, base_model: BaseModel, decoding: Decoding
) -> dg.MaterializeResult[Any]:
    """Answer all cases with the student, compare it with the baseline, gate it, report it, promote it."""
    layout = artifacts.layout
    cases = read_eval_cases(layout.eval_cases)
    evaluation = evaluate_student(cases, layout, base_model.resolved(), decoding, context.log.info)
    baseline_manifest = read_manifest(layout.baseline_answers)
    return _answers_result(
        evaluation.found.student,
        layout.student_answers,
        inputs={
            "eval_cases": file_digest(layout.eval_cases),
            "baseline_report": baseline_manifest.sha256 if baseline_manifest else "",
            "lora_adapter": evaluation.record.sha256,
        },
        config=decoding.report_fingerprint(),
        metadata=_report_metadata(evaluation, layout.report_html, layout.report_json),
    )


def _answers_result(
    scored: Sequence[ScoredAnswer],
    path: UPath,
    *,
    inputs: dict[str, str],
    config: str,
    metadata: Mapping[str, Any],
) -> dg.MaterializeResult[Any]:
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


def _report_metadata(evaluation: Evaluation, html: UPath, report: UPath) -> dict[str, Any]:
    free = evaluation.free
    return {
        # A path with a copy button: browsers refuse to follow a link from the UI to a file.
        "report": dg.MetadataValue.path(str(html)),
        "report_json": dg.MetadataValue.path(str(report)),
        "gate": "passed" if evaluation.record.passed else "failed",
        "gate_table": records_table(verdict_rows(evaluation.record)),
        "promotion": evaluation.promotion,
        "decoding": evaluation.record.context["decoding"],
        "without_grammar": free.described if free else "The student was not asked without grammar.",
        **{_key(name): figure_picture(figure, name) for name, figure in evaluation_figures(evaluation.found).items()},
    }


def _key(title: str) -> str:
    return title.lower().replace("'s", "").replace(" ", "_")


evaluation_assets = [baseline_report, eval_report]
