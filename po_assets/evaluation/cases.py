"""The evaluation cases, read from their table into plain records.

What makes a good case belongs to the sample data and to the checks of `eval_cases`.
"""

from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from po_assets.product_owner import build_prompt, read_yaml, requirement_entries

_COLUMNS = (
    "case_id",
    "tier",
    "concept",
    "requirements_yaml",
    "reference_vision_yaml",
    "reference_review_yaml",
    "status",
)


@dataclass(frozen=True)
class EvaluationCase:
    """One concept with its requirements, and the answer a teacher gave to it."""

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


def cases_from_frame(frame: pd.DataFrame) -> list[EvaluationCase]:
    """The cases of the `eval_cases` table, in its order.

    Raises:
        ValueError: there is no case, a column is missing, or two cases share an id.
    """
    if frame.empty:
        raise ValueError("the table of evaluation cases is empty: materialize eval_cases")
    if missing := [column for column in _COLUMNS if column not in frame.columns]:
        raise ValueError(f"the evaluation cases have no column {', '.join(missing)}: materialize eval_cases again")
    ids = frame["case_id"].astype(str)
    if twice := sorted(set(ids[ids.duplicated()])):
        raise ValueError(f"case ids occur twice among the evaluation cases: {', '.join(twice[:5])}")
    rows = frame[list(_COLUMNS)].to_dict(orient="records")
    return [EvaluationCase(**{column: str(row[column]) for column in _COLUMNS}) for row in rows]
