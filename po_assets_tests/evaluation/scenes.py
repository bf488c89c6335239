"""Small evaluation cases, answers good and bad, and scored answers of wished-for quality, for the tests of evaluation."""

from dataclasses import replace
from typing import Any

import pandas as pd

from po_assets.dataset.cases import COLUMNS, EvalCase
from po_assets.evaluation.answering import Answer
from po_assets.evaluation.scoring import ScoredAnswer, score_answer
from po_assets.product_owner import format_answer

CONCEPT = "TideTable is a booking tool for harbour staff in Norway. It must list free berths. It does not sell fuel."
REQUIREMENTS = """\
title: TideTable requirements
functional_requirements:
- id: FR001
  description: Harbour staff can list the free berths of a day
- id: FR002
  description: Skippers can book a berth
non_functional_requirements:
- id: NFR001
  description: A page opens within two seconds
constraints:
- id: C001
  description: The tool runs on the harbour's server"""
VISION = """\
product_name: TideTable
product_summary: TideTable is a booking tool that helps harbour staff list free berths and skippers book them in time.
target_users:
- Harbour staff
- Skippers
value_proposition:
- One place to list free berths
- Less waiting at the quay
key_capabilities:
- List free berths
- Book a berth
non_goals:
- Sell fuel
success_metrics:
- 30 percent less waiting at the quay
- 80 percent of skippers book ahead
last_updated: '2026-05-29'"""
REVIEW = """\
summary:
- Every need in the concept has a requirement
- Nothing reaches into what the concept excludes
status: aligned
requirements_alignment:
  aligned:
  - FR001 lets harbour staff list the free berths
  - FR002 lets skippers book a berth
  - NFR001 and C001 fit the concept on speed and hosting
  gaps: []
  conflicts: []
recommended_actions:
- Show FR001 to harbour staff in an early draft
- Test NFR001 with real data before the pilot
narrative: The requirements cover what TideTable must do and stay clear of what it excludes. Work on FR002 can begin."""
GOOD = format_answer(VISION, REVIEW)
NEEDS_ADJUSTMENT = {
    "status": "needs_adjustment",
    "reference_review_yaml": REVIEW.replace("status: aligned", "status: needs_adjustment"),
}


def case(number: int = 1, **changes: Any) -> EvalCase:
    """One case; the reference answer is the good one."""
    fields = {
        "case_id": f"EVAL-{number:02d}",
        "tier": ("simple", "medium", "corporate")[number % 3],
        "concept": CONCEPT.replace("TideTable", f"TideTable{number}"),
        "requirements_yaml": REQUIREMENTS,
        "reference_vision_yaml": VISION,
        "reference_review_yaml": REVIEW,
        "status": "aligned",
    }
    return EvalCase(**{**fields, **changes})


def cases(count: int) -> list[EvalCase]:
    """Cases with different prompts; every fifth one wants needs_adjustment."""
    return [case(number, **({} if number % 5 else NEEDS_ADJUSTMENT)) for number in range(1, count + 1)]


def cases_table(wanted: list[EvalCase]) -> pd.DataFrame:
    """The cases as the table that the asset gets."""
    return pd.DataFrame([{column: getattr(item, column) for column in COLUMNS} for item in wanted])


def scored(of: EvalCase, text: str = GOOD, *, model: str = "student", **changes: Any) -> ScoredAnswer:
    """A really scored answer; `changes` overwrite what came out."""
    answer = Answer(of.case_id, text, "stop", tokens=300, seconds=2.0)
    return replace(score_answer(of, answer, model=model, model_digest="m" * 64, decoding="d" * 64), **changes)


def both_sides(
    totals: list[float], baseline: list[float] | None = None
) -> tuple[list[ScoredAnswer], list[ScoredAnswer]]:
    """Baseline and student with these scores, statuses right, everything valid."""
    wanted = cases(len(totals))

    def side(model: str, scores: list[float]) -> list[ScoredAnswer]:
        pairs = zip(wanted, scores, strict=True)
        return [scored(item, model=model, total=total, status=item.status) for item, total in pairs]

    return side("baseline", baseline or [total - 0.2 for total in totals]), side("student", totals)
