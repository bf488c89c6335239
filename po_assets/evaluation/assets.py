"""The assets of evaluation: `baseline_report` (once per base model) and `eval_report` (per adapter).

Thin: they read, call the plain functions of this package, and show. Their checks are in `checks`.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import dagster as dg
from upath import UPath

from po_assets.dag import (
    Artifacts,
    GateRecord,
    Tracking,
    column_schema,
    figure_picture,
    page_list,
    page_table,
    place,
    rounded,
    short,
    stage_frames,
    user_errors_fail_the_step,
)
from po_assets.dag.compute import CRASH_RETRY, GPU_STEP, POOL
from po_assets.dag.tracking import Tracked
from po_assets.dataset.cases import read_eval_cases
from po_assets.dataset.settings import PromptSettings
from po_assets.evaluation.consumers import consumer_rows
from po_assets.evaluation.evaluate import Evaluation, answer_with_baseline, evaluate_student
from po_assets.evaluation.gate import verdict_rows
from po_assets.evaluation.report import answers_summary, evaluation_figures, reference_note
from po_assets.evaluation.scoring import COLUMNS, ScoredAnswer, answers_frame
from po_assets.evaluation.settings import ENGINE_VERSION, Decoding, GateProfile
from po_assets.evaluation.statistics import judgement, judgement_rows, summarize
from po_assets.intake.assets import FRESHNESS, OWNERS
from po_assets.model import BaseModel
from po_assets.product_owner import METRIC_VERSION, PROMPT_VERSION
from po_assets.storage import digest_of, file_digest, recorded_digest, replace_file
from po_assets.text import amount

CODE_VERSION = f"3+engine.{ENGINE_VERSION}+metric.{METRIC_VERSION}+prompt.{PROMPT_VERSION}"

GROUP = "evaluation"
KINDS = {"python", "pytorch", "huggingface"}
_COLUMNS = column_schema(COLUMNS)


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
def baseline_report(  # noqa: PLR0917 - resources, by name
    context: dg.AssetExecutionContext,
    artifacts: Artifacts,
    base_model: BaseModel,
    decoding: Decoding,
    prompt: PromptSettings,
    tracking: Tracking,
) -> dg.MaterializeResult[Any]:
    """Answer all cases with the base model."""
    layout, spec = artifacts.layout, base_model.resolved()
    cases = read_eval_cases(layout.eval_cases, prompt.own)
    scored = answer_with_baseline(cases, layout, spec, decoding, context.log.info)
    summary = answers_summary(scored, spec.name, decoding)
    replace_file(layout.baseline_report, json.dumps(summary, indent=1).encode())
    return _answers_result(
        scored,
        layout.baseline_answers,
        inputs={
            "eval_cases": file_digest(layout.eval_cases),
            "base_model": scored[0].model_digest,
            "prompt": prompt.own.digest,
        },
        config=decoding.fingerprint(),
        metadata={
            "model": short(spec.name),
            "prompt": f"{prompt.own.name} ({prompt.own.digest[:12]})",
            "references": reference_note(cases),
            "decoding": decoding.described(),
            "report": place(layout.baseline_report),
        },
        tracked=tracking.run(context, spec.identity() | decoding.effective()),
    )


@dg.asset(
    group_name=GROUP,
    owners=OWNERS,
    kinds=KINDS,
    pool=POOL,
    op_tags=GPU_STEP,
    retry_policy=CRASH_RETRY,
    code_version=CODE_VERSION,
    freshness_policy=FRESHNESS,
    deps=["eval_cases", "baseline_report", "lora_adapter"],
    # Without its columns, which are those of baseline_report: the verdict is what people come for.
    description="One row per evaluation case: the student's answer and its score (columns as in baseline_report), with "
    "the gate that decides whether the adapter becomes models/current, and a report for people (HTML and JSON). The "
    "gate's criteria are its checks.",
)
@user_errors_fail_the_step()
def eval_report(  # noqa: PLR0917 - resources, by name
    context: dg.AssetExecutionContext,
    artifacts: Artifacts,
    base_model: BaseModel,
    decoding: Decoding,
    gate: GateProfile,
    prompt: PromptSettings,
    tracking: Tracking,
) -> dg.MaterializeResult[Any]:
    """Answer all cases with the student, compare it with the baseline, gate it, report it, promote it."""
    layout = artifacts.layout
    cases = read_eval_cases(layout.eval_cases, prompt.own)
    evaluation = evaluate_student(
        cases,
        layout,
        base_model.resolved(),
        decoding,
        gate=gate,
        log=context.log.info,
        consumers=prompt.consumers,
        consumer_cases=prompt.consumer_share(cases),
    )
    return _answers_result(
        evaluation.found.student,
        layout.student_answers,
        inputs={
            "eval_cases": file_digest(layout.eval_cases),
            "baseline_report": recorded_digest(layout.baseline_answers),
            "lora_adapter": evaluation.record.sha256,
        },
        config=digest_of([decoding.report_fingerprint(), gate.fingerprint(), prompt.fingerprint()]),
        metadata=_report_metadata(evaluation, layout.report_html, layout.report_json),
        tracked=tracking.run(
            context, decoding.effective() | gate.effective() | {"lora_adapter": evaluation.record.sha256}
        ),
    )


def _answers_result(
    scored: Sequence[ScoredAnswer],
    path: UPath,
    *,
    inputs: dict[str, str],
    config: str,
    metadata: Mapping[str, Any],
    tracked: AbstractContextManager[Tracked],
) -> dg.MaterializeResult[Any]:
    staged = stage_frames(path, [answers_frame(scored)])
    summary, judged = summarize(scored), judgement(scored)
    statuses = {"status_accuracy": judged.right / judged.cases, "macro_f1": judged.macro_f1} if judged.cases else {}
    lowest = sorted(scored, key=lambda answer: answer.total)
    result: dg.MaterializeResult[Any] = dg.MaterializeResult(
        value=staged.with_manifest(inputs=inputs, config=config, code_version=CODE_VERSION),
        data_version=dg.DataVersion(staged.sha256),
        metadata={
            **metadata,
            "dagster/row_count": staged.rows,
            "mean_score": round(summary.mean, 3),
            "score_std": round(summary.std, 3),
            "valid_share": round(summary.valid_share, 3),
            **rounded(statuses),
            "tokens_per_second": round(summary.tokens_per_second, 1),
            "lowest_cases": page_table(
                [
                    {
                        "case": a.case_id,
                        "tier": a.tier,
                        "score": round(a.total, 3),
                        "valid": a.valid,
                        "right status": a.reference_status or "not given",
                        "status": a.status or "none",
                        "what cost points": "; ".join(a.problems[:2]) or "nothing",
                    }
                    for a in lowest
                ]
            ),
        },
    )
    with tracked as line:
        line.result(result.metadata or {})
    return result


def _report_metadata(evaluation: Evaluation, html: UPath, report: UPath) -> dict[str, Any]:
    free, record, found = evaluation.free, evaluation.record, evaluation.found
    name, summary = record.context["profile"]["name"], found.summary
    return {
        # The UI shows metadata in this order: first what everybody comes for.
        "verdict": f"{record.context['sentence']} Mean score {summary.mean:.3f} over {amount(summary.cases, 'case')} "
        f"(baseline {found.baseline_summary.mean:.3f}). {evaluation.promotion}",
        "gate": f"{'passed' if record.passed else 'failed'} (profile {name})",
        "criteria": page_list(_criteria(record)),
        "judgement": page_table(judgement_rows(found.judgement)),
        "contrast": record.context["contrast"] or "No contrast case could be judged.",
        "prompt": record.context["prompt"],
        "consumer_prompts": page_table(consumer_rows(found.student, found.consumers))
        if found.consumers
        else "No other prompt was asked.",
        # A path with a copy button: browsers refuse to follow a link from the UI to a file.
        "report": place(html),
        "report_json": place(report),
        "promotion": evaluation.promotion,
        "decoding": record.context["decoding"],
        "without_grammar": free["described"] if free else "The student was not asked without grammar.",
        **{_key(name): figure_picture(figure, name) for name, figure in evaluation_figures(found).items()},
    }


def _criteria(record: GateRecord) -> list[str]:
    """A line for each criterion: what failed first, then what only warns."""
    order = ("FAIL", "warning", "pass", "-")
    rows = sorted(verdict_rows(record), key=lambda row: order.index(row["verdict"]))
    return [f"**{one['verdict']}** {one['criterion']}: {one['value']} (required {one['required']})" for one in rows]


def _key(title: str) -> str:
    return title.lower().replace("'s", "").replace(" ", "_")
