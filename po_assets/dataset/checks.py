"""The checks of supervised_dataset, all in one step, and the gate record that makes their verdict last.

What they look at, and what they say, belongs to `verdicts` and `leakage`.
"""

from collections.abc import Iterator

import dagster as dg
import orjson

from po_assets.dag import Artifacts, Verdict, to_check_result
from po_assets.dataset.assets import supervised_dataset
from po_assets.dataset.cases import read_eval_cases
from po_assets.dataset.closing import kept_places
from po_assets.dataset.gate import write_gate
from po_assets.dataset.holdout import HoldOut
from po_assets.dataset.leakage import AnswerNotInPromptRule, DuplicatePromptsRule, OverlapRule
from po_assets.dataset.policy import SelectionPolicy
from po_assets.dataset.selection import ScoreSource
from po_assets.dataset.token_budget import TokenBudget, token_budget
from po_assets.dataset.training_row import Rule, TrainingRow
from po_assets.dataset.verdicts import ConflictsRule, FitsContextRule, SchemaRule, ValidTargetsRule, retention
from po_assets.errors import UserError
from po_assets.intake.landing import sources_of
from po_assets.intake.ledger import Outcome, balance
from po_assets.intake.verdicts import ledger_balances
from po_assets.model import BaseModel
from po_assets.storage import Layout, file_digest, open_buffered, read_manifest, read_rows

_ASSET = "supervised_dataset"
_DESCRIPTIONS = {
    "schema": "Every row is a prompt and a response of the one form, and there are as many as the ledger calls kept.",
    "ledger_balances": "Every landed line has exactly one final outcome, by counting the files' lines.",
    "conflicts_share": "Enough rows teach the status conflicts, and every one that passed the score filter is there.",
    "no_eval_overlap": "No row has the input of an evaluation case, or nearly.",
    "fits_context": "No row loses a token: all fit into the length that the base model is trained with.",
    "targets_pass_validator": "The responses pass the validator that students' answers must pass.",
    "answer_not_in_prompt": "No prompt holds the vision that the answer must contain.",
    "duplicate_prompts": "Every prompt has one answer.",
    "retention": "The share of landed rows fit for training lies where it is expected.",
}
_NOT_LOST = (Outcome.KEPT, Outcome.REPLACED)
"""A replaced conflicts row is there in its corrected form."""
_CONFLICTS = b'"conflicts"'
"""In every JSON line that has this value; other lines need no parsing."""
BLOCKING = ("schema", "ledger_balances", "conflicts_share", "no_eval_overlap", "fits_context")


@dg.multi_asset_check(
    name="supervised_dataset_checks",
    specs=[
        dg.AssetCheckSpec(name, asset=supervised_dataset, blocking=name in BLOCKING, description=description)
        for name, description in _DESCRIPTIONS.items()
    ],
    can_subset=True,
)
def supervised_dataset_checks(
    context: dg.AssetCheckExecutionContext, artifacts: Artifacts, selection: SelectionPolicy, base_model: BaseModel
) -> Iterator[dg.AssetCheckResult]:
    """Run the selected checks; when they are all, record their verdict as the dataset's gate."""
    layout = artifacts.layout
    wanted = {key.name for key in context.selected_asset_check_keys}
    try:
        verdicts = supervised_verdicts(layout, selection, token_budget(base_model, layout), wanted)
    except UserError as error:
        raise dg.Failure(str(error), allow_retries=False) from None
    if wanted == set(_DESCRIPTIONS):
        write_gate(layout.supervised_gate, file_digest(layout.supervised), verdicts)
    for name, verdict in verdicts.items():
        yield to_check_result(name, _ASSET, verdict)


def supervised_verdicts(
    layout: Layout, policy: SelectionPolicy, budget: TokenBudget, wanted: set[str]
) -> dict[str, Verdict]:
    """The verdicts of the wanted checks, from the files as they stand."""
    sources = sources_of(read_manifest(layout.raw), layout.raw)
    counted = balance(
        layout.raw, sources, layout.ledger, layout.normalized, layout.rejected, supervised=layout.supervised
    )
    manifest = read_manifest(layout.supervised)
    rules: dict[str, Rule] = {
        "schema": SchemaRule(counted.outcomes.of(Outcome.KEPT)),
        "conflicts_share": _conflicts_rule(layout, policy),
        "no_eval_overlap": OverlapRule(
            HoldOut(read_eval_cases(layout.eval_cases), policy.near_duplicate_threshold),
            policy.near_duplicate_threshold,
        ),
        "fits_context": FitsContextRule(budget),
        "targets_pass_validator": ValidTargetsRule(),
        "answer_not_in_prompt": AnswerNotInPromptRule(
            int(manifest.extra.get("vision_in_landed_prompt", 0)) if manifest else 0
        ),
        "duplicate_prompts": DuplicatePromptsRule(),
    }
    chosen = {name: rule for name, rule in rules.items() if name in wanted}
    for row in _training_rows(layout):
        for rule in chosen.values():
            rule.add(row)
    verdicts = {name: rule.verdict() for name, rule in chosen.items()} | {
        "ledger_balances": ledger_balances(counted),
        "retention": retention(counted, policy.min_retention, policy.max_retention),
    }
    return {name: verdict for name, verdict in verdicts.items() if name in wanted}


def _training_rows(layout: Layout) -> Iterator[TrainingRow]:
    """The training rows, each with the place under which it landed, as far as the ledger has one for it."""
    places = kept_places(read_rows(layout.ledger))
    for number, row in enumerate(read_rows(layout.supervised), start=1):
        file, line = next(places, (layout.supervised.name, number))
        yield TrainingRow(file, line, row)


def _conflicts_rule(layout: Layout, policy: SelectionPolicy) -> ConflictsRule:
    """The rule, told of every conflicts row that passed the score filter and was left out."""
    rule = ConflictsRule(policy.min_conflicts_share, policy.max_conflicts_share)
    score = "score" if policy.score_source == ScoreSource.declared else "metric_score"
    readable = (entry for entry in read_rows(layout.ledger) if entry["decided_by"] == _ASSET)
    with open_buffered(layout.normalized) as lines:
        for entry, line in zip(readable, lines, strict=False):
            if entry["outcome"] in _NOT_LOST or _CONFLICTS not in line:
                continue
            row = orjson.loads(line)
            if row["status"] == "conflicts" and row[score] >= policy.min_score:
                rule.add_left_out(entry, row)
    return rule


dataset_checks = [supervised_dataset_checks]
