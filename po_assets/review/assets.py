"""The assets synthetic_conflicts and review_candidates: read, call the plain functions, say what came out."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import dagster as dg
import orjson

from po_assets.dag import (
    Artifacts,
    asked_for_alone,
    bar_chart,
    page_table,
    place,
    rounded,
    user_errors_fail_the_step,
)
from po_assets.dataset.assets import eval_cases
from po_assets.dataset.publication import token_budget
from po_assets.dataset.settings import SelectionSettings
from po_assets.intake.assets import OWNERS, normalized_teacher
from po_assets.model import BaseModel
from po_assets.product_owner import METRIC_VERSION, PROMPT_VERSION
from po_assets.review.candidates import collect
from po_assets.review.checks import table_of_reasons
from po_assets.review.conflicts import make_conflicts
from po_assets.review.entries import refuse_edited
from po_assets.review.review_file import KINDS, write_review_file
from po_assets.review.settings import ReviewSettings
from po_assets.storage import Layout, StagedTable, digest_of, file_digest, recorded_digest, stage_lines

GROUP = "curation"
CONFLICTS_CODE_VERSION = f"2+metric.{METRIC_VERSION}+prompt.{PROMPT_VERSION}"
CANDIDATES_CODE_VERSION = f"2+metric.{METRIC_VERSION}"


@dg.asset(
    deps=[normalized_teacher, eval_cases],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"python", "jsonl"},
    code_version=CONFLICTS_CODE_VERSION,
    io_manager_key="io_manager",
    output_required=False,
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
    curation: ReviewSettings,
    selection: SelectionSettings,
    base_model: BaseModel,
) -> Iterator[dg.MaterializeResult[Any]]:
    """Make, audit and land conflicts rows; nothing beside other assets, which would not take them in."""
    said = "No conflicts rows were made, since other assets were selected too. They are landed for the next run"
    if not asked_for_alone(context, said, "conflicts_on_demand"):
        return
    layout = artifacts.layout
    with user_errors_fail_the_step():
        made = make_conflicts(layout, curation, selection, token_budget(base_model, layout))
        context.log.info("%s %s", made.verdicts["share_reached"].summary, made.landed)
        staged = stage_lines(layout.synthetic_conflicts, map(orjson.dumps, made.rows)).with_manifest(
            inputs=_inputs(layout),
            config=digest_of({"curation": curation.effective(), "selection": selection.effective()}),
            code_version=CONFLICTS_CODE_VERSION,
            extra=made.record,
        )
    record = made.record
    metadata: dict[str, Any] = {name: record[name] for name in ("share", "share_before", "target", "needed")}
    metadata |= {"landing": made.landed, "could_not_be_made": record["needed"] - len(made.rows)}
    metadata["parents_available"] = len(made.basis.parents)
    if record["passed_over"]:
        metadata["parents_passed_over"] = page_table(table_of_reasons(record))
    if made.rows:
        metadata["patterns"] = bar_chart(Counter(row["metadata"]["pattern"] for row in made.rows), "Patterns")
        shown = ("score", "concept", "teacher_product_owner_review")
        preview = [
            {"pattern": row["metadata"]["pattern"]} | {name: row[name] for name in shown}
            for row in (made.rows[0], made.rows[-1])
        ]
        metadata["preview"] = page_table(preview, of=len(made.rows))
    yield _result(staged, metadata)


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
        "Written to `curation/po_review_candidates.yaml`, in which answers are corrected; `po-assets review land` "
        "takes the corrections. A corrected row replaces the old one, a corrected case stays an evaluation case."
    ),
)
@user_errors_fail_the_step()
def review_candidates(
    context: dg.AssetExecutionContext, artifacts: Artifacts, curation: ReviewSettings, selection: SelectionSettings
) -> dg.MaterializeResult[Any]:
    """Collect the candidates and write the review file, unless it holds edits that were not taken yet."""
    layout = artifacts.layout
    command = layout.command("review land")
    refuse_edited(layout.review_file, command, "materialize review_candidates again")
    found = collect(layout, curation, selection.score_tolerance)
    write_review_file(layout, found.candidates)
    for note in found.notes:
        context.log.warning(note)
    table = [
        {"kind": one.kind, "id": one.identifier, "place": one.place, "why": "; ".join(one.why), "status": one.status}
        for one in found.candidates
    ]
    approved = layout.approved_answers
    staged = stage_lines(layout.review_candidates, map(orjson.dumps, table)).with_manifest(
        inputs=_inputs(layout) | {"approved_answers": file_digest(approved) if approved.exists() else ""},
        code_version=CANDIDATES_CODE_VERSION,
    )
    metadata: dict[str, Any] = {
        "review_file": place(layout.review_file),
        "next_step": "Correct answers in the review file, or write `verdict: right` where they need no correction, "
        f"then run: {command}",
    }
    for kind in KINDS:
        metadata[f"{kind}s"] = sum(one.kind == kind for one in found.candidates)
        metadata |= {f"more_{kind}s": found.more[kind], f"{kind}s_approved": found.approved[kind]}
    metadata |= {"left_out": " ".join(found.notes)} if found.notes else {}
    metadata |= {"candidates": page_table(table)} if table else {}
    return _result(staged, metadata)


def _inputs(layout: Layout) -> dict[str, str]:
    return {"normalized_teacher": recorded_digest(layout.normalized), "eval_cases": file_digest(layout.eval_cases)}


def _result(staged: StagedTable, metadata: dict[str, Any]) -> dg.MaterializeResult[Any]:
    metadata = {"dagster/row_count": staged.rows, **rounded(metadata)}
    return dg.MaterializeResult(value=staged, data_version=dg.DataVersion(staged.sha256), metadata=metadata)
