"""The assets eval_cases and supervised_dataset: read, call the plain functions, say what came out.

How rows are chosen belongs to `selection`, reading and writing the tables to `publication`.
"""

from collections import Counter
from typing import Any

import dagster as dg

from po_assets.dag import (
    Artifacts,
    bar_chart,
    column_schema,
    histogram,
    page_list,
    page_table,
    place,
    user_errors_fail_the_step,
)
from po_assets.dataset.cases import COLUMNS as CASE_COLUMNS
from po_assets.dataset.cases import read_case_file, read_eval_cases
from po_assets.dataset.publication import build_supervised, conflicts_gone, token_budget
from po_assets.dataset.settings import PromptSettings, SelectionSettings
from po_assets.intake.assets import OWNERS, normalized_teacher, thinned
from po_assets.intake.ledger import Outcome
from po_assets.model import BaseModel
from po_assets.product_owner import PROMPT_VERSION
from po_assets.storage import digest_of, file_digest, recorded_digest
from po_assets.text import amount, verb

CASES_CODE_VERSION = "4"
SUPERVISED_CODE_VERSION = f"4+prompt.{PROMPT_VERSION}"
GROUP = "dataset"
COLUMNS = {
    "prompt": ("string", "The one prompt: concept and requirements. Training, baseline and student share it."),
    "response": ("string", "The teacher's answer: the fenced YAML blocks VISION and REVIEW."),
}


@dg.asset(
    group_name=GROUP,
    owners=OWNERS,
    kinds={"python", "jsonl"},
    code_version=CASES_CODE_VERSION,
    metadata={"dagster/column_schema": column_schema(CASE_COLUMNS)},
    description=(
        "One row per evaluation case: an input and, where they are known, a reference answer and the right status.\n\n"
        "The file is written by people and committed; this asset validates it and never rewrites it. "
        "Its inputs are held out of training."
    ),
)
@user_errors_fail_the_step()
def eval_cases(artifacts: Artifacts) -> dg.MaterializeResult[Any]:
    """Read and validate the evaluation cases."""
    path = artifacts.layout.eval_cases
    file = read_case_file(path)
    cases, referenced = file.cases, sum(case.has_reference for case in file.cases)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(file_digest(path)),
        metadata={
            "dagster/row_count": len(cases),
            "with_reference": f"{referenced} of {amount(len(cases), 'case')} {verb(referenced, 'has', 'have')} a "
            "reference answer",
            "statuses": bar_chart(dict(Counter(case.status or "not said" for case in cases)), "Right status"),
            "tiers": bar_chart(dict(Counter(case.tier or "not said" for case in cases)), "Tiers"),
            **({"notes": page_table(file.notes)} if file.notes else {}),
            "preview": page_table(
                [{"case_id": c.case_id, "tier": c.tier, "status": c.status, "concept": c.concept} for c in cases[:5]],
                of=len(cases),
            ),
            "path": place(path),
        },
    )


@dg.asset(
    deps=[normalized_teacher, eval_cases],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"python", "pandas", "jsonl"},
    code_version=SUPERVISED_CODE_VERSION,
    io_manager_key="io_manager",
    metadata={"dagster/column_schema": column_schema(COLUMNS)},
    description=(
        "One row per training example: `prompt` and `response`, nothing else.\n\n"
        "Selected from the normalized rows by the resource `selection`: score, hold-out of evaluation inputs, "
        "validity, duplicates, length in tokens, number. Closes the **row ledger**: every row left out is named there "
        "with the reason. Nothing is ever truncated."
    ),
)
@user_errors_fail_the_step()
def supervised_dataset(
    context: dg.AssetExecutionContext,
    artifacts: Artifacts,
    selection: SelectionSettings,
    base_model: BaseModel,
    prompt: PromptSettings,
) -> dg.MaterializeResult[Any]:
    """Choose and write the training rows."""
    layout = artifacts.layout
    cases = read_eval_cases(layout.eval_cases)
    budget = token_budget(base_model, layout, prompt.own)
    staged, chosen = build_supervised(layout, selection, cases, budget)
    decisions, outcomes, asked_with = chosen.decisions, chosen.outcomes, budget.prompt
    rules = {"selection": selection.effective(), "model": budget.model, "max_length": budget.max_length}
    staged = staged.with_manifest(
        inputs={"normalized_teacher": recorded_digest(layout.normalized), "eval_cases": file_digest(layout.eval_cases)},
        config=digest_of(rules | {"prompt": asked_with.digest}),
        code_version=SUPERVISED_CODE_VERSION,
        extra={
            "base_model": budget.model,
            "max_length": budget.max_length,
            "prompt": {"name": asked_with.name, "digest": asked_with.digest},
            "outcomes": outcomes.by_outcome(),
            "statuses": dict(chosen.statuses),
            "ledger_sha256": chosen.ledger_sha256,
            "conflicts_by_file": {name: count for name, count in chosen.conflicts_by_file.items() if count},
            "conflicts_gone": conflicts_gone(layout, decisions.files),
            "vision_in_landed_prompt": chosen.vision_in_prompt,
        },
    )
    context.log.info(", ".join(f"{count:,} {name}" for name, count in outcomes.by_outcome().items()))
    kept_tokens = decisions.tokens[decisions.where(Outcome.KEPT)]
    metadata: dict[str, dg.MetadataValue | int | float | str] = {
        "dagster/row_count": staged.rows,
        "landed": outcomes.total,
        "outcomes": page_list(outcomes.lines()),
        "examples": page_table(outcomes.table()),
        "preview": page_table(chosen.preview, of=staged.rows),
        "path": place(layout.supervised),
        "prompt": f"{asked_with.name} ({asked_with.digest[:12]})",
        "tokens": int(kept_tokens.sum()),
    }
    if len(decisions):
        title, least = f"Scores ({selection.score_source}) of all readable rows", {"min_score": selection.min_score}
        metadata["scores"] = histogram(thinned(decisions.score), title, "score", least)
    if staged.rows:
        title, most = f"Tokens per training row ({budget.model})", {"max_length": budget.max_length}
        metadata |= {
            "statuses": bar_chart(dict(chosen.statuses.most_common()), "Status of the training rows"),
            "tiers": bar_chart(dict(chosen.tiers.most_common()), "Tiers of the training rows"),
            "lengths": histogram(thinned(kept_tokens), title, "tokens", most),
        }
    return dg.MaterializeResult(value=staged, data_version=dg.DataVersion(staged.sha256), metadata=metadata)
