"""The assets synthetic_conflicts and review_candidates: read, call the plain functions, say what came out."""

from typing import Any

import dagster as dg

from po_assets.dag import Artifacts, bar_chart, records_table, stage_frames
from po_assets.dataset.assets import eval_cases
from po_assets.dataset.publication import token_budget
from po_assets.dataset.settings import SelectionSettings
from po_assets.errors import UserError
from po_assets.intake.assets import OWNERS, normalized_teacher
from po_assets.model import BaseModel
from po_assets.product_owner import METRIC_VERSION, PROMPT_VERSION
from po_assets.review.candidates import Collected, collect
from po_assets.review.conflicts import Synthesis, make_conflicts
from po_assets.review.policy import CurationPolicy
from po_assets.review.review_file import write_review_file
from po_assets.storage import Layout, StagedTable, digest_of, file_digest, read_manifest, stage_lines

GROUP = "curation"
CONFLICTS_CODE_VERSION = f"1+metric.{METRIC_VERSION}+prompt.{PROMPT_VERSION}"
CANDIDATES_CODE_VERSION = f"2+metric.{METRIC_VERSION}"


@dg.asset(
    deps=[normalized_teacher, eval_cases],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"python", "jsonl"},
    code_version=CONFLICTS_CODE_VERSION,
    io_manager_key="io_manager",
    description=(
        "One row per conflicts example made from teacher rows, as many as the training rows lack for the share set in "
        "the resource `curation`.\n\n"
        "Two patterns: the concept of one product with the requirements of another, and a requirement changed into "
        "what the vision's non-goals exclude. Rows that pass their audit land as `incoming/synthetic_conflicts.jsonl`; "
        "not part of the main job, which takes them in like any other landed file."
    ),
)
def synthetic_conflicts(
    context: dg.AssetExecutionContext,
    artifacts: Artifacts,
    curation: CurationPolicy,
    selection: SelectionSettings,
    base_model: BaseModel,
) -> dg.MaterializeResult[Any]:
    """Make, audit and land conflicts rows."""
    layout = artifacts.layout
    try:
        synthesis = make_conflicts(layout, curation, selection, token_budget(base_model, layout))
    except UserError as error:
        raise dg.Failure(str(error), allow_retries=False) from None
    context.log.info("%s %s", synthesis.verdicts["share_reached"].summary, synthesis.landed)
    staged = stage_lines(layout.synthetic_conflicts, synthesis.lines).with_manifest(
        inputs=_inputs(layout),
        config=digest_of({"curation": curation.model_dump(), "selection": selection.model_dump()}),
        code_version=CONFLICTS_CODE_VERSION,
        extra=synthesis.record,
    )
    return _conflicts_result(staged, synthesis)


@dg.asset(
    deps=[normalized_teacher, eval_cases, "baseline_report", "eval_report"],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"python", "yaml"},
    code_version=CANDIDATES_CODE_VERSION,
    io_manager_key="io_manager",
    description=(
        "One row per answer that a person should look at: teacher rows whose declared score is not the metric's, and "
        "evaluation cases on which baseline and student disagree, or whose answers the gate found worst.\n\n"
        "Written to `curation/po_review_candidates.yaml`, in which answers are corrected; `python -m "
        "po_assets.review land` takes the corrections. A corrected row replaces the old one, a corrected case stays "
        "an evaluation case."
    ),
)
def review_candidates(
    context: dg.AssetExecutionContext, artifacts: Artifacts, curation: CurationPolicy, selection: SelectionSettings
) -> dg.MaterializeResult[Any]:
    """Collect the candidates and write the review file, unless it holds edits that were not taken yet."""
    layout = artifacts.layout
    _refuse_to_overwrite_edits(layout)
    try:
        collected = collect(layout, curation, selection.score_tolerance)
    except (UserError, FileNotFoundError) as error:
        raise dg.Failure(f"The candidates cannot be collected: {error}", allow_retries=False) from None
    write_review_file(layout.review_file, collected.candidates)
    for note in collected.notes:
        context.log.warning(note)
    return _candidates_result(layout, collected)


def _inputs(layout: Layout) -> dict[str, str]:
    normalized = read_manifest(layout.normalized)
    return {
        "normalized_teacher": normalized.sha256 if normalized else "",
        "eval_cases": file_digest(layout.eval_cases),
    }


def _conflicts_result(staged: StagedTable, synthesis: Synthesis) -> dg.MaterializeResult[Any]:
    made, record = synthesis.made, synthesis.record
    metadata: dict[str, dg.MetadataValue | int | float | str] = {
        "dagster/row_count": staged.rows,
        "landing": synthesis.landed,
        "share": float(record["share"]),
        "share_before": float(record["share_before"]),
        "target": float(record["target"]),
        "needed": made.needed,
        "could_not_be_made": made.short,
        "parents_available": len(synthesis.basis.parents),
    }
    if made.passed_over:
        metadata["parents_passed_over"] = records_table(
            [{"reason": reason, "parents": count} for reason, count in made.passed_over.most_common()]
        )
    if made.rows:
        patterns = [row["metadata"]["pattern"] for row in made.rows]
        metadata["patterns"] = bar_chart({name: patterns.count(name) for name in dict.fromkeys(patterns)}, "Patterns")
        metadata["preview"] = records_table(
            [
                {
                    "pattern": row["metadata"]["pattern"],
                    "score": row["score"],
                    "concept": row["concept"],
                    "review": row["teacher_product_owner_review"],
                }
                for row in (made.rows[0], made.rows[-1])
            ]
        )
    return dg.MaterializeResult(value=staged, data_version=dg.DataVersion(staged.sha256), metadata=metadata)


def _refuse_to_overwrite_edits(layout: Layout) -> None:
    path, manifest = layout.review_file, read_manifest(layout.review_candidates)
    if path.exists() and (manifest is None or manifest.extra.get("review_sha256") != file_digest(path)):
        raise dg.Failure(
            f"The review file {str(path)!r} was edited and its corrections were not taken yet. Take them with "
            "`python -m po_assets.review land`, or delete the file, then materialize review_candidates again.",
            allow_retries=False,
        )


def _candidates_result(layout: Layout, collected: Collected) -> dg.MaterializeResult[Any]:
    import pandas as pd

    right = layout.found_right
    columns: dict[str, list[str]] = {
        "kind": [one.kind for one in collected.candidates],
        "id": [one.identifier for one in collected.candidates],
        "place": [one.place for one in collected.candidates],
        "why": ["; ".join(one.why) for one in collected.candidates],
        "status": [one.status for one in collected.candidates],
    }
    staged = stage_frames(layout.review_candidates, [pd.DataFrame(columns)]).with_manifest(
        inputs=_inputs(layout) | {"found_right": file_digest(right) if right.exists() else ""},
        code_version=CANDIDATES_CODE_VERSION,
        extra={"review_sha256": file_digest(layout.review_file)},
    )
    kinds = columns["kind"]
    metadata: dict[str, dg.MetadataValue | int | str] = {
        "dagster/row_count": staged.rows,
        "teacher_rows": kinds.count("teacher_row"),
        "evaluation_cases": kinds.count("evaluation_case"),
        "more_teacher_rows": collected.more["teacher_row"],
        "more_evaluation_cases": collected.more["evaluation_case"],
        "teacher_rows_found_right": collected.found_right["teacher_row"],
        "evaluation_cases_found_right": collected.found_right["evaluation_case"],
        "review_file": dg.MetadataValue.path(str(layout.review_file)),
        "next_step": "Correct answers in the review file, or write `verdict: right` where they need no correction, "
        "then run: python -m po_assets.review land",
    }
    if collected.notes:
        metadata["left_out"] = " ".join(collected.notes)
    if collected.candidates:
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        metadata["candidates"] = records_table(rows)
    return dg.MaterializeResult(value=staged, data_version=dg.DataVersion(staged.sha256), metadata=metadata)
