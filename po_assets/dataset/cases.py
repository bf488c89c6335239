"""The evaluation cases: a committed file that people wrote, read and validated, never rewritten.

What is done with the cases belongs to `holdout` (kept out of training) and to `evaluation`.
"""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import orjson
from upath import UPath

from po_assets.errors import UserError
from po_assets.intake.normalization import input_digest
from po_assets.product_owner import STATUSES, build_prompt, read_status, read_yaml, requirement_entries
from po_assets.storage import open_buffered

COLUMNS: dict[str, tuple[str, str]] = {
    "case_id": ("string", "Unique name of the case."),
    "tier": ("string", "simple, medium or corporate."),
    "concept": ("string", "The product concept."),
    "requirements_yaml": ("string", "The requirements document."),
    "reference_vision_yaml": ("string", "A good vision."),
    "reference_review_yaml": ("string", "A good review."),
    "status": ("string", f"The right status: {', '.join(STATUSES)}."),
}
TIERS = ("simple", "medium", "corporate")
_SHOWN_PROBLEMS = 20


@dataclass(frozen=True)
class EvalCase:
    """One evaluation case: an input, and a reference answer with the right status."""

    case_id: str
    tier: str
    concept: str
    requirements_yaml: str
    reference_vision_yaml: str
    reference_review_yaml: str
    status: str
    """The status that a right answer gives."""

    @cached_property
    def prompt(self) -> str:
        """The one prompt, as in training."""
        return build_prompt(self.concept, self.requirements_yaml)

    @cached_property
    def requirement_ids(self) -> tuple[str, ...]:
        """The ids that an answer may cite, in document order."""
        entries = requirement_entries(self.requirements_yaml)
        return tuple(dict.fromkeys(entry.id for entry in entries if entry.id))

    @cached_property
    def reference_conflicts(self) -> int:
        """How many conflicts the reference answer lists."""
        alignment = read_yaml(self.reference_review_yaml).value.get("requirements_alignment")
        conflicts = alignment.get("conflicts") if isinstance(alignment, dict) else None
        return len(conflicts) if isinstance(conflicts, list) else 0


def read_eval_cases(path: UPath) -> list[EvalCase]:
    """The evaluation cases, validated.

    Raises:
        UserError: the file is missing or empty, or cases are faulty; all faults of the file are named.
    """
    if not path.exists():
        raise UserError(
            f"The evaluation cases {str(path)!r} do not exist. Put the file there (it is committed with the project: "
            "`git checkout` brings it back), one JSON object with "
            f"{', '.join(COLUMNS)} per line."
        )
    cases: list[EvalCase] = []
    problems: list[str] = []
    with open_buffered(path) as file:
        for number, line in enumerate(file, start=1):
            case, faults = _read_case(line)
            problems += [f"line {number}: {fault}" for fault in faults]
            if case and not faults:
                cases.append(case)
    problems += _repeated(cases)
    if not cases and not problems:
        problems = ["it is empty"]
    if problems:
        more = len(problems) - _SHOWN_PROBLEMS
        listed = "; ".join(problems[:_SHOWN_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")
        raise UserError(
            f"The evaluation cases {str(path)!r} have {len(problems)} fault{'' if len(problems) == 1 else 's'}: "
            f"{listed}. Correct the file and materialize eval_cases again."
        )
    return cases


def _read_case(line: bytes) -> tuple[EvalCase | None, list[str]]:
    try:
        row: Any = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return None, [f"it is no JSON ({error})"]
    if not isinstance(row, dict):
        return None, ["it is no JSON object"]
    names = [field.name for field in fields(EvalCase)]
    faults = [f"{name} is missing or no text" for name in names if not _is_text(row.get(name))]
    faults += [f"unknown key {name!r}" for name in row if name not in names]
    if faults:
        return None, faults
    case = EvalCase(**row)
    if case.status not in STATUSES:
        faults.append(f"status is {case.status!r}, expected is one of {', '.join(STATUSES)}")
    elif read_status(case.reference_review_yaml) != case.status:
        faults.append(
            f"status is {case.status!r}, but the reference review says {read_status(case.reference_review_yaml)!r}"
        )
    if case.tier not in TIERS:
        faults.append(f"tier is {case.tier!r}, expected is one of {', '.join(TIERS)}")
    faults += [
        f"{name} does not parse: {unread}"
        for name in ("requirements_yaml", "reference_vision_yaml", "reference_review_yaml")
        if (unread := read_yaml(getattr(case, name)).error)
    ]
    return case, faults


def _repeated(cases: list[EvalCase]) -> list[str]:
    """Cases that share their name or their input with an earlier one."""
    problems: list[str] = []
    ids: set[str] = set()
    inputs: dict[str, str] = {}
    for case in cases:
        if case.case_id in ids:
            problems.append(f"case_id {case.case_id!r} stands twice")
        ids.add(case.case_id)
        other = inputs.setdefault(input_digest(case.concept, case.requirements_yaml), case.case_id)
        if other != case.case_id:
            problems.append(f"case {case.case_id!r} has the same input as {other!r}")
    return problems


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
