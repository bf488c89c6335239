"""Conflicts rows on demand: how many are wanted, made, audited, and landed if they pass.

Reads top to bottom what the asset `synthetic_conflicts` does, free of Dagster. The file in the landing folder is always
made anew from the teacher's own rows, so that nothing piles up and no made row is the parent of another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from upath import UPath

from po_assets.dag import Verdict
from po_assets.dataset.cases import read_eval_cases
from po_assets.dataset.holdout import HoldOut
from po_assets.dataset.publication import TokenBudget
from po_assets.dataset.settings import SelectionSettings
from po_assets.review.landing import land, to_lines
from po_assets.review.parents import Basis, parents_by_id, read_basis
from po_assets.review.policy import CurationPolicy
from po_assets.review.synthesis import LEAST_SCORE, Made, Requirements, synthesize
from po_assets.review.verdicts import form_is_not_telling, rows_are_sound, share_reached
from po_assets.storage import Layout, Manifest, read_manifest, read_rows

LANDED_NAME = "synthetic_conflicts.jsonl"
"""One stable name: landing again replaces the file."""


@dataclass(frozen=True)
class Synthesis:
    """What was found, made and landed."""

    basis: Basis
    made: Made
    verdicts: dict[str, Verdict]
    landed: str
    """What became of the file in the landing folder, in a sentence."""
    record: dict[str, Any]
    """The figures, for the table's manifest, from which the checks work."""

    @property
    def lines(self) -> list[bytes]:
        """The rows as JSON lines."""
        return to_lines(self.made.rows)


def make_conflicts(
    layout: Layout, policy: CurationPolicy, selection: SelectionSettings, budget: TokenBudget
) -> Synthesis:
    """Fill the conflicts rows up to the target; rows that fail an audit do not land.

    Raises:
        UserError: the evaluation cases cannot be used.
        UserError: teacher tables are missing, or do not belong together.
    """
    cases, rules = read_eval_cases(layout.eval_cases), selection
    basis = read_basis(layout, rules, cases, budget, policy.seed)
    needed = basis.needed(policy.target_conflicts_share)
    hold_out = HoldOut(cases, rules.near_duplicate_threshold)
    made = synthesize(basis.parents, needed, Requirements(rules.min_score, hold_out, budget), policy.seed)
    record = {
        "target": policy.target_conflicts_share,
        "rows_before": basis.kept,
        "conflicts_before": basis.conflicts,
        "share_before": basis.share,
        "share": basis.share_with(len(made.rows)),
        "needed": needed,
        "made": len(made.rows),
        "passed_over": dict(made.passed_over),
        "least_score": max(LEAST_SCORE, rules.min_score),
    }
    verdicts = audit(made.rows, record, layout, hold_out)
    landed = _land(layout, made, verdicts) if basis.kept else "Nothing was landed: no row would be trained on."
    return Synthesis(basis, made, verdicts, landed, record)


def audit(
    rows: Sequence[dict[str, Any]], record: dict[str, Any], layout: Layout, hold_out: HoldOut
) -> dict[str, Verdict]:
    """The verdict of every check, by name."""
    ids = {identifier for row in rows for identifier in row["metadata"]["parents"]}
    parents = parents_by_id(layout, ids)
    return {
        "share_reached": share_reached(record),
        "rows_are_sound": rows_are_sound(rows, record["least_score"], hold_out, set(parents)),
        "form_is_not_telling": form_is_not_telling(rows, parents),
    }


def audit_table(layout: Layout, near_duplicate_threshold: float) -> dict[str, Verdict]:
    """The verdicts on the published table, from the files as they stand."""
    manifest: Manifest | None = read_manifest(layout.synthetic_conflicts)
    record = manifest.extra if manifest else {}
    if "target" not in record:
        fault = Verdict(
            False,
            f"There is no complete table {str(layout.synthetic_conflicts)!r}.",
            next_step="Materialize synthetic_conflicts again.",
        )
        return dict.fromkeys(("share_reached", "rows_are_sound", "form_is_not_telling"), fault)
    hold_out = HoldOut(read_eval_cases(layout.eval_cases), near_duplicate_threshold)
    return audit(list(read_rows(layout.synthetic_conflicts)), record, layout, hold_out)


def landed_path(layout: Layout) -> UPath:
    """The file in the landing folder."""
    return layout.incoming / LANDED_NAME


def _land(layout: Layout, made: Made, verdicts: dict[str, Verdict]) -> str:
    path = landed_path(layout)
    failed = [name for name, verdict in verdicts.items() if not verdict.passed and verdict.severity == "ERROR"]
    if not made.needed:
        if not path.exists():
            return "Nothing was landed: the target is met."
        return (
            f"Nothing was landed: the target is met by the teacher's rows alone. The earlier {path.name} is no longer "
            "needed; delete it from the landing folder to train without it."
        )
    if not made.rows:
        return "Nothing was landed: no row could be made."
    if failed:
        return f"Nothing was landed: {' and '.join(failed)} failed."
    if land(path, to_lines(made.rows)):
        return f"{len(made.rows)} rows landed in {path.name}; the sensor takes them from there."
    return f"{path.name} holds these {len(made.rows)} rows already; nothing was written."
