"""Scores of generated answers: the metric's own, computed once for all answers that it cannot tell apart.

Reading three YAML documents takes most of the time of making a row. An answer that names every requirement id is scored
by its counts and lengths alone, so answers alike in these share a score. The committed files' scores are checked row by
row against the metric, and so is a sample of streamed rows.
"""

from bisect import bisect
from collections.abc import Sequence
from typing import Any

from po_assets.product_owner import score_product_owner

_SUMMARY_STEPS = (1, 40, 60, 120)
_NARRATIVE_STEPS = (1, 40, 80, 160)
"""Lengths in characters at which the metric pays more (shared with `product_owner.metric`)."""

_Key = tuple[object, ...]
_known: dict[_Key, float] = {}


def score_answer(
    ids: Sequence[str], requirements_yaml: str, vision: dict[str, Any], review: dict[str, Any], texts: tuple[str, str]
) -> float:
    """The metric's score of an answer, given as mappings and as the YAML texts (vision, review) they are written as."""
    key = _key(ids, vision, review)
    score = _known.get(key) if key else None
    if score is None:
        score = score_product_owner(requirements_yaml, *texts).total
        if key:
            _known[key] = score
    return score


def _key(ids: Sequence[str], vision: dict[str, Any], review: dict[str, Any]) -> _Key | None:
    """All that the metric sees of an answer; None where it must look for a requirement by its words."""
    alignment = review["requirements_alignment"]
    named = " ".join(item for items in alignment.values() for item in items)
    if not all(entry in named for entry in ids):
        return None
    return (
        len(ids),
        review["status"],
        *(len(value) for value in vision.values() if isinstance(value, list)),
        bisect(_SUMMARY_STEPS, len(vision["product_summary"])),
        *(len(items) for items in alignment.values()),
        len(review["summary"]),
        len(review["recommended_actions"]),
        bisect(_NARRATIVE_STEPS, len(review["narrative"])),
    )
