"""The rules of synthetic_conflicts: is the share reached, is every row sound, does the form of prompts give them away.

Nothing here knows Dagster's checks; `checks` runs these and shows what they say.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from po_assets.dag import Verdict
from po_assets.dag.violations import Violations
from po_assets.dataset.holdout import HoldOut
from po_assets.product_owner import read_status, score_product_owner, validate_answer
from po_assets.review.form import Prompt, how_telling
from po_assets.text import amount, verb

PATTERNS = ("scope_mismatch", "violated_non_goal")


def share_reached(record: Mapping[str, Any]) -> Verdict:
    """Whether the training rows reach the target with the made rows; a warning that says why not."""
    needed, made, target = record["needed"], record["made"], record["target"]
    numbers = {
        "share": record["share"],
        "share_before": record["share_before"],
        "target": target,
        "needed": needed,
        "made": made,
    }
    before = (
        f"{record['conflicts_before']:,} of {amount(record['rows_before'], 'row')} that would be trained on "
        f"({record['share_before']:.1%}) {verb(record['conflicts_before'], 'is', 'are')} conflicts"
    )
    if not record["rows_before"]:
        return Verdict(
            False,
            "No row would be trained on, so nothing can be made.",
            next_step="Materialize normalized_teacher, and see the ledger for where the rows went.",
            numbers=numbers,
            severity="WARN",
        )
    if not needed:
        return Verdict(
            True, f"{before}; the target of {target:.1%} is met, nothing was made.", numbers=numbers, severity="WARN"
        )
    found = (
        f"{before}; {made:,} of the {needed:,} missing for {target:.1%} were made, which gives {record['share']:.1%}"
    )
    if made >= needed:
        return Verdict(True, f"{found}.", numbers=numbers, severity="WARN")
    return Verdict(
        False,
        f"{found}: {amount(needed - made, 'row')} could not be made.",
        next_step="The table says why parents gave no row. Land more different teacher rows of status aligned whose "
        "visions name non-goals, or lower target_conflicts_share in the resource curation.",
        rows=[{"reason": reason, "parents": count} for reason, count in record["passed_over"].items()],
        numbers=numbers,
        severity="WARN",
    )


def rows_are_sound(
    rows: Sequence[Mapping[str, Any]], least_score: float, hold_out: HoldOut, known_parents: set[str]
) -> Verdict:
    """Every made row passes the validator, has an honest score that is high enough, and says where it comes from."""
    violations, scores = Violations(), []
    for number, row in enumerate(rows, start=1):
        score = score_product_owner(
            row["requirements_yaml"], row["teacher_product_vision"], row["teacher_product_owner_review"]
        ).total
        scores.append(score)
        if faults := _faults(row, score, least_score, hold_out, known_parents):
            violations.add({"row": number, "pattern": row["metadata"].get("pattern"), "fault": "; ".join(faults)})
    numbers = {"made_rows": len(rows), "faulty_rows": violations.count, "lowest_score": min(scores, default=0.0)}
    if violations:
        return Verdict(
            False,
            f"{violations.count:,} of {amount(len(rows), 'made row')} {verb(violations.count, 'is', 'are')} not sound.",
            next_step="The file was changed by hand, or the teacher tables were since: materialize synthetic_conflicts "
            "again. If a fault stays, please report it.",
            rows=violations.rows,
            numbers=numbers,
        )
    lowest = f", the lowest scores {min(scores):.3f}" if scores else ""
    return Verdict(
        True,
        f"{len(rows):,} of {amount(len(rows), 'made row')} {verb(len(rows), 'is', 'are')} valid and "
        f"{verb(len(rows), 'scores', 'score')} at least {least_score:g} by the metric{lowest}.",
        numbers=numbers,
    )


def form_is_not_telling(rows: Sequence[Mapping[str, Any]], parents: Mapping[str, Mapping[str, Any]]) -> Verdict:
    """Whether made rows and their parents are told apart by form alone no better than by chance."""
    prompts = form_prompts(rows, parents)
    found = how_telling(prompts)
    if found is None:
        return Verdict(
            True,
            f"{amount(len(rows), 'made row')} {verb(len(rows), 'is', 'are')} too few to tell whether their form gives "
            "them away.",
            numbers={"made_rows": len(rows)},
        )
    numbers = {"auc": found.auc, "auc_limit": found.limit, "p_value": found.p_value, "made_rows": len(rows)}
    said = (
        f"By form alone {amount(len(rows), 'conflicts row')} {verb(len(rows), 'is', 'are')} told from the "
        f"{len(prompts) - len(rows):,} they were made from with an AUC of {found.auc:.2f} (0.5 is chance; p = "
        f"{found.p_value:.3f}; for so few rows an AUC of {found.limit:.2f} would be telling)."
    )
    if found.tells:
        return Verdict(
            False,
            said,
            next_step="The student could learn the form instead of the content, so nothing was landed. Another seed in "
            "the resource curation makes other rows; if it stays, the teacher's documents have a form that rewriting "
            "does not keep: please report it with a few of them.",
            numbers=numbers,
        )
    return Verdict(True, said, numbers=numbers)


def form_prompts(rows: Sequence[Mapping[str, Any]], parents: Mapping[str, Mapping[str, Any]]) -> list[Prompt]:
    """The made rows and their parents as the form test sees them; rows that share a parent are of one group."""
    group: dict[str, int] = {}
    for number, row in enumerate(rows):
        ids = row["metadata"]["parents"]
        joined = {group[identifier] for identifier in ids if identifier in group}
        group |= {identifier: number for identifier, of in group.items() if of in joined}
        group |= dict.fromkeys(ids, number)
    made = [
        Prompt(row["concept"], row["requirements_yaml"], group[row["metadata"]["parents"][0]], conflicts=True)
        for row in rows
    ]
    return made + [
        Prompt(parents[identifier]["concept"], parents[identifier]["requirements_yaml"], number, conflicts=False)
        for identifier, number in group.items()
        if identifier in parents
    ]


def _faults(
    row: Mapping[str, Any], score: float, least_score: float, hold_out: HoldOut, known_parents: set[str]
) -> list[str]:
    verdict = validate_answer(row["teacher_product_vision"], row["teacher_product_owner_review"])
    metadata = row["metadata"]
    overlap = hold_out.find(row["concept"], row["requirements_yaml"])
    missing = [identifier for identifier in metadata["parents"] if identifier not in known_parents]
    tests = (
        (bool(verdict), f"it is not valid: {verdict.reason}"),
        (score >= least_score, f"it scores {score:.3f}, at least {least_score:g} is wanted"),
        (row["score"] == score, f"it declares {row['score']}, the metric gives {score}"),
        (read_status(row["teacher_product_owner_review"]) == "conflicts", "its status is not conflicts"),
        (metadata.get("source") == "synthetic", "its metadata does not say source: synthetic"),
        (metadata.get("pattern") in PATTERNS, f"its pattern is {metadata.get('pattern')!r}"),
        (not missing, f"its parents {', '.join(missing)} are no teacher rows any more"),
        (overlap is None, f"it is nearly the input of evaluation case {overlap.case_id if overlap else ''}"),
    )
    return [fault for holds, fault in tests if not holds]
